"""Checkpoints and records of compositions with the names of version 0.1."""

from pathlib import Path

import pytest
import torch

from lrbench_pl.analysis.plots import tuning_info
from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.composing.range_test import RateRamp
from lrbench_pl.composing.segments import Segment, _fingerprint
from lrbench_pl.policies import Constant, Polynomial, Sequential
from lrbench_pl.runs.folder import Record
from tests.cli.test_cli import call
from tests.helpers import TinyModule, tiny_trainer

FOLDER = Path(__file__).parent / "former_names"
FINGERPRINTS = ["1c4062d05e6692c9", "635c5010101efe46", "1effa6cf6123ae3f", "87c3f81f8f36d1be"]


class Module(TinyModule):
    def validation_step(self, batch, batch_idx):
        self.log("val/score", 0.1 + 1e-6 * self.trainer.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(
    ("name", "repeats", "steps", "kinds"),
    [pytest.param("range_test", 2, 700, ["range"], marks=pytest.mark.slow), ("branches", 0, 200, ["stable", "branch"])],
)
def test_a_checkpoint_with_former_names_resumes(name, repeats, steps, kinds):
    path = FOLDER / f"{name}.pt"
    (stored,) = [state for state in torch.load(path)["callbacks"].values() if "composition" in state]
    former = stored["composition"]["records"]
    assert {record["kind"] for record in former} - {"range", "branch"} <= {"trunk"}

    composer = LRPolicyComposer(target=2.0, monitor="val/score", growth=1.5, repeats=repeats)
    tiny_trainer(composer, max_steps=steps, val_check_interval=2).fit(Module(), ckpt_path=path)
    assert composer.verdict.steps_run == steps
    assert composer.verdict.status == "missed"
    assert sorted({record["kind"] for record in composer.records[: len(former)]}) == sorted(kinds)
    for record, before in zip(composer.records, former, strict=False):
        assert (record["spent"], record["steps"], record["rates"]) == (
            before["spent"],
            before["steps"],
            before["rates"],
        )


def test_the_fingerprints_of_segments_are_those_of_version_0_1():
    """They decide whether a checkpoint fits the plan, so that a new name in the code must not change them."""
    decayed = Sequential((Constant(0.5), Polynomial(0.5, 10)), (20,))
    segments = [
        Segment("snapshot", Constant(0.125), 0, 0, save="start"),
        Segment("range", RateRamp(0.25, 4.0, 50), 0, 50, restore="start", skip=50, note="any"),
        Segment("stable", Constant(0.5), 20, 10, restore="stable", save="stable", averaged=True),
        Segment("branch", decayed, 20, 10),
    ]
    assert [_fingerprint(segment) for segment in segments] == FINGERPRINTS


def test_the_former_name_of_a_setting_is_refused_with_the_current_one():
    with pytest.raises(ValueError, match="expected the setting 'stable', got its former name 'trunks'; rename it"):
        LRPolicyComposer(target=0.9, trunks=["sine"])


def test_the_former_key_is_refused_with_the_current_one(monkeypatch, capsys):
    message = "there is no key 'lr_policy.trunks' any more; it is called lr_policy.stable"
    given = ("lr_policy=auto", "lr_policy.trunks=[sine]")
    assert call(monkeypatch, capsys, "preview", *given) == (2, "", f"error: {message}\n")


def test_a_run_record_of_format_1_is_read_with_the_current_name():
    policy = Record.read(FOLDER.parents[1] / "formats" / "1" / "auto").configuration["policy"]
    assert policy["stable"] == ["constant", "triangle"]
    assert "trunks" not in policy


def test_records_with_former_names_are_drawn():
    record = {"kind": "trunk", "policy_step": 0, "spent": 0, "steps": 10, "rates": [0.1, 0.1]}
    assert tuning_info([record], "seed 0").segments[0].kind == "stable"
