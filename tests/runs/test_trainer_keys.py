"""Keys of the group ``trainer`` in a configured run: appended, kept or refused, never ignored."""

from __future__ import annotations

import re

import pytest

from lrbench_pl.runs.build import build
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.options import UserError
from lrbench_pl.runs.run import run

SMALL = ["lr_policy=fix", "max_steps=20", "check_every=10", "target=null", "trainer=cpu", "logger=none"]
SUMMARY = "{_target_: pytorch_lightning.callbacks.RichModelSummary}"
TIMER = "{_target_: pytorch_lightning.callbacks.Timer}"


def kinds(*overrides: str) -> list[str]:
    return [type(each).__name__ for each in build(compose([*SMALL, *overrides])).trainer.callbacks]


@pytest.mark.parametrize(
    "given", [f"[{SUMMARY},{TIMER}]", f"{{one: {SUMMARY}, two: {TIMER}}}"], ids=["list", "mapping"]
)
def test_callbacks_of_ones_own_are_appended(given):
    found = kinds(f"+trainer.callbacks={given}")
    assert found[0] == "LRPolicyCallback"
    assert found[-2:] == ["RichModelSummary", "Timer"]


def test_one_callback_needs_no_list():
    assert kinds(f"+trainer.callbacks={TIMER}")[-1] == "Timer"


def test_other_objects_than_callbacks_are_refused():
    with pytest.raises(UserError, match=r"trainer.callbacks must be callbacks, each with its _target_, got 'Timer'"):
        kinds("+trainer.callbacks=[Timer]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps=7", r"trainer.max_steps must be max_steps \(20\), got 7; leave it out and set max_steps"),
        ("trainer.max_steps=70", r"trainer.max_steps must be max_steps \(20\), got 70"),
        ("+trainer.val_check_interval=5", "trainer.val_check_interval is set by the run, got 5; use check_every=STEPS"),
        ("+trainer.logger=false", "trainer.logger is set by the run, got False; use the group logger"),
        ("+trainer.default_root_dir=there", "trainer.default_root_dir is set by the run, got 'there'; use hydra.run"),
        (
            "+trainer.fast_dev_run=true",
            "the Trainer would take 1 steps of max_steps=20; leave out trainer.fast_dev_run",
        ),
    ],
)
def test_contradictions_are_refused_before_training(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        kinds(override)
    row = run(compose([*SMALL, override]), tmp_path)
    assert row.status == "failed"
    assert re.search(message, row.message)
    assert not row.steps_run


def test_the_progress_bar_can_be_turned_off():
    assert "ProgressLines" in kinds()
    assert "ProgressLines" not in kinds("+trainer.enable_progress_bar=false")


def test_a_run_that_another_callback_ends_is_stopped_with_the_reason(tmp_path):
    stopper = "{_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/accuracy, mode: max, patience: 99,"
    stopper += " stopping_threshold: 0.01}"
    row = run(compose([*SMALL, "dataset=synthetic", f"+trainer.callbacks=[{stopper}]"]), tmp_path)
    assert (row.status, row.steps_run) == ("stopped", 10)
    assert row.message == "stopped at step 10 of 20: a callback or the module ended the training"
