"""Nothing in a checkpoint is executed, whoever wrote it."""

import os
import pickle

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback

from lrbench_pl.callbacks.checkpoints import CheckpointError, check_intact
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose

SHORT = ("max_steps=40", "check_every=10", "checkpoint_every=10", "target=null", "lr_policy=fix", "trainer=cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class Intruder:
    """An object that leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


class Stateful(Callback):
    """A callback whose state is whatever it is given."""

    state = None

    def state_dict(self):
        return {"state": type(self).state}


class Own:
    """A state of the user's own."""


def train(folder, *overrides):
    folder.mkdir(exist_ok=True)
    return experiment.run(compose([*SHORT, f"logger.csv.save_dir={folder}", *overrides]), folder)


def interrupted(folder, monkeypatch, *overrides):
    """A run that was stopped after its checkpoint at step 20."""
    from lrbench_pl.callbacks.checkpoints import Checkpoints, TrainingPaused

    before = Checkpoints._save

    def save_and_stop(self, trainer):
        before(self, trainer)
        if trainer.global_step == 20:
            raise TrainingPaused("for the test")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save", save_and_stop)
        assert train(folder, *overrides).status == "stopped"
    return folder / "checkpoints" / "step=000000020.ckpt"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("kind", ["file of torch", "plain pickle", "inside a state"])
def test_a_pickle_in_place_of_a_checkpoint_does_not_run(tmp_path, monkeypatch, caplog, undisturbed, kind):
    checkpoint, trace = interrupted(tmp_path / "run", monkeypatch), tmp_path / "trace"
    if kind == "plain pickle":
        checkpoint.write_bytes(pickle.dumps(Intruder(trace)))
    else:
        content = torch.load(checkpoint, weights_only=True)
        content["callbacks"]["Own"] = Intruder(trace)
        torch.save(content if kind == "inside a state" else Intruder(trace), checkpoint)
    result = train(tmp_path / "run")
    assert not trace.exists()
    assert (result.status, result.steps_run) == ("missed", 40)
    assert result.final_value == undisturbed.final_value
    (line,) = (text for text in caplog.messages if text.startswith("cannot resume from step=000000020.ckpt: "))
    assert "\n" not in line
    assert kind == "plain pickle" or "io.open; it is not loaded, since that would execute code" in line
    assert "starting from the beginning" in caplog.messages


def test_a_refused_checkpoint_is_kept_and_does_not_displace_new_ones(tmp_path, monkeypatch):
    checkpoint = interrupted(tmp_path / "run", monkeypatch)
    other = checkpoint.rename(checkpoint.with_name("step=000000030.ckpt"))
    torch.save({"state": Intruder(tmp_path / "trace")}, other)
    again = interrupted(tmp_path / "run", monkeypatch)
    assert sorted(path.name for path in again.parent.iterdir()) == [again.name, other.name]
    train(tmp_path / "run")
    assert list(again.parent.iterdir()) == [other]
    assert not (tmp_path / "trace").exists()


def test_a_damaged_checkpoint_is_set_aside(tmp_path, monkeypatch):
    checkpoint = interrupted(tmp_path / "run", monkeypatch)
    written = checkpoint.stat()
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    os.utime(checkpoint, ns=(written.st_atime_ns, written.st_mtime_ns))  # as a disk damages it
    again = interrupted(tmp_path / "run", monkeypatch)
    assert sorted(path.name for path in again.parent.iterdir()) == [again.name, f"{again.name}.refused"]


@pytest.mark.parametrize("policy", ["fix", "auto", "plateau"])
def test_a_checkpoint_contains_tensors_and_plain_data(tmp_path, monkeypatch, policy):
    checkpoint = interrupted(tmp_path / "run", monkeypatch, f"lr_policy={policy}")
    check_intact(checkpoint)
    torch.load(checkpoint, weights_only=True)  # without any further type


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, monkeypatch, caplog, undisturbed):
    """It contains the random state as an array of NumPy."""
    checkpoint = interrupted(tmp_path / "run", monkeypatch)
    content = torch.load(checkpoint, weights_only=True)
    kind, numbers, *rest = content["lrbench_pl"]["random"]["numpy"]
    content["lrbench_pl"]["random"]["numpy"] = (kind, np.array(numbers, dtype=np.uint32), *rest)
    torch.save(content, checkpoint)
    result = train(tmp_path / "run")
    assert "resuming from step=000000020.ckpt" in caplog.messages
    assert not [text for text in caplog.messages if text.startswith("cannot resume")]
    assert (result.final_value, result.test_loss) == (undisturbed.final_value, undisturbed.test_loss)


def test_a_state_that_could_not_be_loaded_gives_no_checkpoint_and_says_so(tmp_path, monkeypatch, caplog):
    callback = "+trainer.callbacks=[{_target_: tests.faults.test_foreign_checkpoints.Stateful}]"
    monkeypatch.setattr(Stateful, "state", Own())
    result = train(tmp_path / "run", callback)
    assert result.status == "missed"
    (line,) = (text for text in caplog.messages if text.startswith("no checkpoints"))
    assert "a state_dict contains tests.faults.test_foreign_checkpoints.Own" in line
    monkeypatch.setattr(Stateful, "state", np.arange(3))
    checkpoint = interrupted(tmp_path / "array", monkeypatch, callback)
    check_intact(checkpoint)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}."])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "step=000000010.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        check_intact(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="expected a regular file"):
        check_intact(path)
