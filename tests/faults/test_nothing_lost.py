"""A run that is killed or shares its folder keeps its history, and deletes only what it has written."""

import contextlib
import csv
import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from lrbench_pl.callbacks.history_file import HistoryFile, parse, use_history_files
from lrbench_pl.files import WrittenFiles, remove_temporary, replacing, write_atomically
from tests.faults.killable import Killed, runner


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run in a folder; with ``dies_at``, the process dies before that batch."""
    common = ("max_steps=60", "check_every=10", "trainer=cpu", "target=null", "checkpoint_every=20")
    return runner(tmp_path, monkeypatch, *common)


def history(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "check/seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "left", [None, *(pytest.param(left, marks=pytest.mark.slow) for left in (b"", b"epoch,step\r\n0,1", b"\xff\xfe"))]
)
def test_the_history_is_that_of_the_checkpoint_whatever_is_left_of_the_file(run, tmp_path, left):
    run("whole")
    run("killed", dies_at=45)
    file = tmp_path / "killed" / "metrics.csv"
    file.unlink() if left is None else file.write_bytes(left)
    assert run("killed").status == "missed"
    assert history(tmp_path / "killed") == history(tmp_path / "whole")


def test_the_history_is_never_shorter_than_its_checkpoint(run, tmp_path, monkeypatch):
    """Resuming is killed at every replacement of a file: no moment is without the rows."""
    run("killed", dies_at=45)
    (checkpoint,) = (tmp_path / "killed" / "checkpoints").iterdir()
    (text,) = torch.load(checkpoint, weights_only=False)["lrbench_pl"]["history"]
    promised = len(parse(text))
    replace, seen = os.replace, []

    def look(source, to):
        replace(source, to)
        seen.append(len(history(tmp_path / "killed")))

    monkeypatch.setattr(os, "replace", look)
    run("killed")
    assert seen
    assert min(seen) >= promised > 3


def test_a_write_that_fails_leaves_the_history_as_it_was(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path, name="", version="")
    use_history_files([logger])
    for step in range(3):
        logger.log_metrics({"loss": 0.5}, step)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    logger.log_metrics({"loss": 0.25}, 3)

    class Full:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            self._file.write(data[:2])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda *args, opened=open, **options: Full(opened(*args, **options)))
        with pytest.raises(OSError, match="No space left"):
            logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    logger.log_metrics({"value": 0.75}, 4)  # a new column
    logger.save()
    assert parse((tmp_path / "metrics.csv").read_text()) == [
        *({"loss": "0.5", "step": str(step)} for step in range(3)),
        {"loss": "0.25", "step": "3"},
        {"value": "0.75", "step": "4"},
    ]


def test_a_history_that_was_deleted_meanwhile_has_a_header(tmp_path):
    file = HistoryFile(str(tmp_path))
    file.log_metrics({"loss": 1.0}, 0)
    file.save()
    (tmp_path / "metrics.csv").unlink()
    file.log_metrics({"loss": 2.0}, 1)
    file.save()
    assert parse((tmp_path / "metrics.csv").read_text()) == [{"loss": "2.0", "step": "1"}]


def test_checkpoints_of_the_user_stay(run, tmp_path):
    folder = tmp_path / "a"
    run("a", "trainer.enable_checkpointing=true", dies_at=45)
    mine = [folder / "checkpoints" / name for name in ("mine.ckpt", "step=10-best.ckpt", "step=000000007.ckpt")]
    for path in mine:
        path.write_text("mine")
    assert run("a", "trainer.enable_checkpointing=true").status == "missed"
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert set(left) > {path.name for path in mine}
    assert [name for name in left if name.startswith("epoch=")]  # of Lightning's own callback
    assert "step=000000040.ckpt" not in left
    assert not (folder / ".checkpoints.json").exists()


def test_nothing_but_its_own_is_deleted_behind_a_link(run, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "a"
    elsewhere.mkdir()
    folder.mkdir()
    others = [elsewhere / name for name in ("step=000000010.ckpt", "a.ckpt", ".unfinished.ckpt", ".a.0123456789ab.tmp")]
    for path in others:
        path.write_text("other")
    (folder / "checkpoints").symlink_to(elsewhere)
    run("a", dies_at=25)
    assert (elsewhere / "step=000000020.ckpt").is_file()
    assert run("a").status == "missed"
    assert (folder / "checkpoints").is_symlink()
    assert sorted(elsewhere.iterdir()) == sorted(set(others) - {elsewhere / ".unfinished.ckpt"})


def test_a_file_of_the_user_is_not_replaced_by_a_checkpoint(run, tmp_path, caplog):
    mine = tmp_path / "a" / "checkpoints" / "step=000000040.ckpt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert run("a").status == "missed"
    assert mine.read_text() == "mine"
    assert "no checkpoint at step 40" in caplog.text


def test_the_next_start_removes_what_a_killed_write_left(run, tmp_path):
    folder = tmp_path / "a"
    run("a", dies_at=45)
    left = [folder / ".result.json.0123456789ab.tmp", folder / "checkpoints" / ".unfinished.ckpt"]
    left.append(folder / "checkpoints" / "..unfinished.ckpt.0123456789ab.tmp")
    left.append(folder / ".hydra" / ".config.yaml.0123456789ab.tmp")
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    kept = [folder / ".mine.tmp", folder / ".result.json.mine.tmp"]
    for path in kept:
        path.write_text("mine")
    assert run("a").status == "missed"
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_checkpoint_that_outlived_its_run_is_removed(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("lrbench_pl.callbacks.checkpoints.Checkpoints.discard", lambda self: None)
        first = run("a")
    assert (tmp_path / "a" / "checkpoints" / "step=000000040.ckpt").is_file()
    assert run("a") == first
    assert not (tmp_path / "a" / "checkpoints").exists()
    assert not (tmp_path / "a" / ".checkpoints.json").exists()


def test_checkpoints_do_not_pass_through_the_folder_of_temporary_files(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    run("a", dies_at=45)
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step=000000040.ckpt"]
    assert "no checkpoint" not in caplog.text


def test_an_atomic_write(tmp_path):
    path = write_atomically(tmp_path / "a" / "b.txt", "first")
    with contextlib.suppress(Killed), replacing(path) as file:
        file.write(b"second")
        raise Killed
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["b.txt"]
    os.umask(mask := os.umask(0o077))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    remove_temporary(path.parent)
    assert path.exists()


def test_a_file_put_in_the_place_of_a_written_one_is_not_ours(tmp_path):
    written, path = WrittenFiles(tmp_path / "record.json"), tmp_path / "a.ckpt"
    path.write_text("ours")
    written.add(path.name, path.stat())
    assert written.has(path)
    Path(tmp_path / "other").write_text("theirs")
    os.replace(tmp_path / "other", path)
    assert not written.has(path)
    written.delete(path)
    assert path.read_text() == "theirs"
    for damaged in ("[1]", "[[[", "\xff"):
        (tmp_path / "record.json").write_text(damaged)
        assert not written.has(path)
