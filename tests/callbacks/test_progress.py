"""The lines of progress that a log gets."""

from types import SimpleNamespace

import pytest
import torch

from lrbench_pl.callbacks.progress import ProgressLines


def lines(rates, capsys, check_every=10):
    """Run a training in which only the rate happens; validate every ``check_every`` steps."""
    group = {"lr": rates[0]}
    trainer = SimpleNamespace(
        optimizers=[SimpleNamespace(param_groups=[group])], callback_metrics={"val/accuracy": torch.tensor(0.9)},
        max_steps=len(rates), global_step=0, is_global_zero=True,
    )  # fmt: skip
    callback = ProgressLines("val/accuracy")
    callback.on_train_start(trainer, None)
    for step, rate in enumerate(rates, start=1):
        group["lr"] = rate
        callback.on_train_batch_end(trainer, None, None, None, 0)
        trainer.global_step = step
        if step % check_every == 0:
            callback.on_validation_end(trainer, None)
    return capsys.readouterr().out.splitlines()


def test_a_period_as_long_as_the_interval_shows_its_range(capsys):
    found = lines([0.01 * (1 + step % 10) for step in range(50)], capsys)
    assert found == [f"  step {step} of 50: lr 0.01 to 0.1, val/accuracy 0.9000" for step in (10, 20, 30, 40)]


def test_the_range_is_that_since_the_line_before(capsys):
    found = lines([0.5 - 0.01 * step for step in range(50)], capsys)
    assert [line.partition(": ")[2].partition(",")[0] for line in found[:2]] == ["lr 0.41 to 0.5", "lr 0.31 to 0.4"]


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_a_constant_rate_is_one_number(capsys, rate):
    assert lines([rate] * 50, capsys)[0] == "  step 10 of 50: lr 0.1, val/accuracy 0.9000"
