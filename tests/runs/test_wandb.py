"""W&B, offline: the written files are read back."""

import json
import os
import struct
import time

import pytest
from pytorch_lightning.loggers import WandbLogger

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.cli.publish import publish
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.wandb_logging import WandbRun
from tests.analysis.test_report import sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error:W&B failed"),  # the last one wins
]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    before = dict(os.environ)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "120")  # seconds for its process to begin, on a machine with other work
    monkeypatch.chdir(tmp_path)
    yield
    for name in os.environ.keys() - before.keys():
        if name != "PYTEST_CURRENT_TEST":
            os.environ.pop(name)


def records(data):
    """Iterate over the records of W&B's file: a header of 7 bytes, then LevelDB's log of 32 KiB blocks."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for a header: the rest of the block is empty
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def read_back(folder):
    """Read the one offline run below a folder, which W&B's process may still write."""
    deadline = time.monotonic() + 60
    while (found := read(folder))[3] is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def read(folder):
    """Return description, history, summary and exit code, as far as they are written."""
    from wandb.proto import wandb_internal_pb2

    files = list(folder.rglob("*.wandb"))  # none yet, perhaps
    assert len(files) <= 1, "one run for one training"
    run, history, summary, code = None, [], {}, None
    for data in records(files[0].read_bytes() if files else b""):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind == "history":
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                            for item in record.history.item})  # fmt: skip
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.summary.update}  # fmt: skip
        elif kind == "exit":
            code = record.exit.exit_code
    return run, history, summary, code


@pytest.mark.parametrize(("status", "code"), [("missed", 0), ("diverged", 0), ("failed", 1), ("stopped", 1)])
def test_one_run_for_one_training(tmp_path, status, code):
    logger = WandbRun("p", tmp_path, tags=["digits", "tri"])
    logger.open_with({"lr": 0.1, "lr_policy": {"period": 5}}, "tri-sgd-0", "sweep1")
    logger.log_metrics({"lr": 0.1}, step=7)
    logger.close_with(RunResult(run_id="a", policy="tri", status=status, best_value=0.9))
    run, history, summary, exit_code = read_back(tmp_path)
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("p", "sweep1", "train", "tri-sgd-0")
    assert list(run.tags) == ["digits", "tri"]
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["lr"] == 0.1
    assert history[0]["trainer/global_step"] == 7
    assert (summary["status"], summary["best_value"], exit_code) == (status, 0.9, code)
    assert "test_accuracy" not in summary


def test_a_failing_service_stops_nothing(tmp_path, monkeypatch):
    import wandb

    def refuse(*arguments, **keywords):
        raise RuntimeError("no")

    monkeypatch.setattr(wandb, "init", refuse)
    logger = WandbRun("p", tmp_path)
    with pytest.warns(UserWarning, match=r"W&B failed \(RuntimeError: no\); the training continues without it"):
        logger.open_with({}, "a", None)
    logger.log_metrics({"lr": 0.1}, step=1)
    logger.close_with(RunResult(run_id="a", policy="tri", status="missed"))
    with pytest.raises(AnalysisError, match=r"W&B failed \(RuntimeError: no\); the ranking above is complete"):
        publish(sweep(tmp_path / "s", seeds=1).table, "p")


def test_a_training_after_a_failed_service_has_its_own_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    failing = WandbRun("p", tmp_path / "a")
    failing.open_with({}, "a", None)

    def fail(*arguments, **keywords):
        raise ConnectionError("gone")

    with monkeypatch.context() as broken:
        broken.setattr(WandbLogger, "log_metrics", fail)
        with pytest.warns(UserWarning, match="W&B failed"):
            failing.log_metrics({"lr": 0.1}, step=1)
    failing.close_with(RunResult(run_id="a", policy="tri", status="missed"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbRun("p", tmp_path / "b")
    logger.open_with({"lr": 0.1}, "b", None)
    logger.close_with(RunResult(run_id="b", policy="tri", status="missed"))
    run, _, summary, code = read_back(tmp_path / "b")
    assert (run.display_name, summary["run_id"], code) == ("b", "b", 0)


def test_a_ranking_is_one_run(tmp_path):
    runs = sweep(tmp_path / "s", optimizers=("sgd",))
    said = publish(runs.table, "p", folder=str(tmp_path / "w"))
    assert said.startswith("W&B, offline: wandb sync ")
    run, history, _, code = read_back(tmp_path / "w")
    assert (run.project, run.job_type, code) == ("p", "ranking", 0)
    steps = [row["trainer/global_step"] for row in history if "policy/tri/median" in row]
    assert steps == list(range(20, 201, 20))
    first = history[0]
    assert first["policy/tri/low"] <= first["policy/tri/median"] <= first["policy/tri/high"]
    media = {key.rsplit("/", 1)[0] for key in history[-1]}  # each has a path, a size and more
    assert {"ranking", "report/ranking", "report/course", "report/arrivals"} <= media
