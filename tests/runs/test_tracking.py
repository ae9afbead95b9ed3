"""Loggers of a run: what they are given, their failures, and the history of a resumed training."""

import csv
import functools
import importlib.util
import json
import time

import pytest
from pytorch_lightning.loggers.logger import Logger

from lrbench_pl.runs.config import compose
from lrbench_pl.runs.options import UserError, check_config
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.tracking import metrics_of, params_of, run_logger
from tests.faults.killable import runner
from tests.faults.sweeps import needs

SHORT = ("max_steps=60", "check_every=10", "checkpoint_every=20", "trainer=cpu", "target=1.0", "lr_policy=tri")


@pytest.fixture
def run(tmp_path, monkeypatch):
    return runner(tmp_path, monkeypatch, *SHORT)


class Own(Logger):
    """A logger as a user writes one, which fails where it is told to."""

    seen: list = []  # noqa: RUF012 - what all of them were given

    def __init__(self, fails_in="", argument=None):
        super().__init__()
        self._fails_in = fails_in
        self._fail("init")

    def _fail(self, place):
        if place == self._fails_in:
            raise ConnectionError("http://me:secret@host\nwent away")

    @property
    def name(self):
        return "own"

    @property
    def version(self):
        return 0

    @property
    def experiment(self):
        self._fail("experiment")
        return self

    def log_hyperparams(self, params, *args):
        self._fail("params")
        self.seen.append(("params", params))

    def log_metrics(self, metrics, step=None):
        self._fail("metrics")
        self.seen.append((step, metrics))

    def save(self):
        self._fail("save")

    def finalize(self, status):
        self._fail("finalize")
        self.seen.append(("end", status))


OWN = f"+logger.own={{_target_: {__name__}.Own}}"


@pytest.fixture(autouse=True)
def forget():
    Own.seen.clear()


def without_times(result):
    return {name: value for name, value in result.to_dict().items() if not name.endswith(("to_target", "_s"))}


FAILED = "logger.own failed (ConnectionError: http://me:***@host went away); the training continues without it"


@pytest.mark.parametrize("place", ["init", "experiment", "params", "metrics", "save", "finalize"])
@pytest.mark.filterwarnings("default:.*went away")
def test_the_first_error_of_a_logger_is_a_warning_and_its_last_use(tmp_path, place, recwarn):
    logger = run_logger(functools.partial(Own, fails_in=place), Own, tmp_path, "own")
    logger.open_with({"lr": 0.1}, "a", None)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    seen = list(Own.seen)
    logger.close_with(RunResult("a", "tri", "missed", steps_run=1))
    assert [str(each.message) for each in recwarn] == [FAILED]
    expected = {"finalize": [("params", {"lr": 0.1, "group": None}), (1, {"loss": 0.5})]}
    expected["save"] = expected["finalize"]
    expected["metrics"] = expected["save"][:1]
    assert seen == expected.get(place, [])
    assert logger.experiment.anything("is ignored") is None


@pytest.mark.filterwarnings("default:.*went away")
def test_a_logger_that_fails_changes_no_result(run):
    plain = run("plain")
    with pytest.warns(UserWarning, match="logger.own failed"):
        assert without_times(run("a", OWN, "+logger.own.fails_in=metrics")) == without_times(plain)


def test_any_logger_gets_configuration_history_and_result(run):
    result = run("a", OWN)
    (kind, params), *rows, last, end = Own.seen
    assert (kind, params["lr_policy"]["_target_"], params["seed"]) == ("params", "lrbench_pl.policies.Cyclic", 0)
    checked = [step for step, metrics in rows if "val/accuracy" in metrics]
    assert checked == [9, 19, 29, 39, 49, 59]
    assert last == (60, metrics_of(result))
    assert last[1]["result/best_value"] == result.best_value
    assert "result/steps_to_target" not in last[1]  # it missed
    assert end == ("end", "success")


def test_a_logger_is_told_of_a_failed_run(run):
    assert run("a", OWN, "dataset.batch_size=100000", "trainer.precision=3").status == "failed"
    assert Own.seen[-1] == ("end", "failed")


def test_a_wrong_argument_of_a_logger_is_refused_before_training(run, tmp_path):
    result = run("a", OWN, "+logger.own.nothing=1")
    assert result.status == "failed"
    assert "got an unexpected keyword argument 'nothing'" in result.message
    assert not (tmp_path / "a" / "metrics.csv").exists()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "aim"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else find(asked, *rest))
    with pytest.raises(UserError, match=rf"logger.{name} needs {name}: pip install 'lrbench_pl\[{name}\]'"):
        check_config(compose([f"logger={name}"]))


def test_several_loggers_are_chosen_by_name():
    assert list(compose(["logger=many"]).logger) == ["csv", "tensorboard", "mlflow"]
    assert list(compose(["logger=[tensorboard,wandb]"]).logger) == ["csv", "tensorboard", "wandb"]


def test_a_result_has_params_and_metrics():
    result = RunResult("a", "tri", "reached", steps_to_target=40, lr=0.1, best_value=0.9, max_steps=100)
    assert params_of(result) == {"policy": "tri", "lr": 0.1, "status": "reached", "max_steps": 100}
    assert metrics_of(result) == {"result/steps_to_target": 40, "result/best_value": 0.9}


# -- a resumed training ---------------------------------------------------------------------------------------------


def history(folder):
    """Return the points of metrics.csv without times, as (metric, step, value)."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(
        (name, int(row["step"]), pytest.approx(float(value), rel=1e-6))
        for row in rows
        for name, value in row.items()
        if value and name not in ("step", "check/seconds")
    )


def in_tensorboard(folder):
    """Return the points that TensorBoard shows, as :func:`history` does, and the HParams."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (place,) = (folder / "tensorboard").iterdir()
    found = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
    points = sorted((name, each.step, each.value) for name in found.Tags()["scalars"] for each in found.Scalars(name))
    data = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(data).session_start_info.hparams
    params = {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}
    return points, params


def split(points):
    return [each for each in points if not each[0].startswith(("result/", "check/seconds"))], {
        name: value for name, _, value in points if name.startswith("result/")
    }


@pytest.mark.parametrize(
    ("dies_at", "overrides"),
    [
        pytest.param(45, (), id="between-checkpoints"),
        pytest.param(5, (), id="before-the-first-checkpoint", marks=pytest.mark.slow),
        pytest.param(20, (), id="at-a-checkpoint", marks=pytest.mark.slow),
        pytest.param(None, ("max_time=1e-9",), id="out-of-time", marks=pytest.mark.slow),
    ],
)
def test_tensorboard_shows_each_point_once(run, tmp_path, dies_at, overrides):
    needs("tensorboard")
    given = ("logger=tensorboard", f"logger.tensorboard.save_dir={tmp_path}/a", "trainer.log_every_n_steps=1")
    if dies_at is not None:
        run("a", *given, dies_at=dies_at)
    if overrides:
        assert run("a", *given, *overrides).status == "stopped"
    time.sleep(1.1 - time.time() % 1)  # TensorBoard orders files by the second; a real resume is in another process
    result = run("a", *given)
    points, params = in_tensorboard(tmp_path / "a")
    curves, numbers = split(points)
    assert curves == history(tmp_path / "a")
    assert numbers == {name: pytest.approx(value) for name, value in metrics_of(result).items()}
    assert {name: params[name] for name in ("policy", "optimizer", "lr", "seed", "status")} == {
        "policy": "tri",
        "optimizer": "momentum",
        "lr": 0.05,
        "seed": 0,
        "status": result.status,
    }
    assert params["optimizer.momentum"] == 0.9


def test_a_logger_that_is_added_when_a_training_resumes_has_all_of_its_history(run, tmp_path):
    needs("tensorboard")
    run("a", "trainer.log_every_n_steps=1", dies_at=45)
    given = ("logger=tensorboard", f"logger.tensorboard.save_dir={tmp_path}/a", "trainer.log_every_n_steps=1")
    run("a", *given)
    assert split(in_tensorboard(tmp_path / "a")[0])[0] == history(tmp_path / "a")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_each_point_once(run, tmp_path, monkeypatch):
    needs("mlflow")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    given = ("logger=mlflow", "study=first")
    run("a", *given, dies_at=5)
    run("a", *given, dies_at=45)
    result = run("a", *given)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("lrbench_pl").experiment_id])
    assert sorted(each.info.status for each in runs) == ["FINISHED", "KILLED"]  # one began anew
    (found,) = [each for each in runs if each.info.status == "FINISHED"]
    assert json.loads((tmp_path / "a" / "loggers.json").read_text()) == {"mlflow": found.info.run_id}
    assert found.info.run_name == "tri-momentum-0"
    assert (found.data.params["seed"], found.data.params["lr_policy/_target_"]) == ("0", "lrbench_pl.policies.Cyclic")
    tags = {name: found.data.tags[name] for name in ("policy", "optimizer", "group", "status")}
    assert tags == {"policy": "tri", "optimizer": "momentum", "group": "first", "status": result.status}
    points = sorted(
        (name, each.step, each.value)
        for name in found.data.metrics
        for each in client.get_metric_history(found.info.run_id, name)
    )
    curves, numbers = split(points)
    assert curves == history(tmp_path / "a")
    assert numbers == metrics_of(result)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_aim_has_each_point_once(run, tmp_path):
    needs("aim")
    from aim import Repo
    from aim.sdk.index_manager import RepoIndexManager

    given = ("logger=aim", f"logger.aim.repo={tmp_path}", "study=first")
    run("a", *given, dies_at=45)
    result = run("a", *given)
    hash_ = json.loads((tmp_path / "a" / "loggers.json").read_text())["aim"]
    RepoIndexManager.get_index_manager(Repo.from_path(str(tmp_path))).index(hash_)  # as `aim up` does
    found = Repo.from_path(str(tmp_path)).get_run(hash_)
    assert found.experiment == "lrbench_pl"
    assert (found["hparams", "seed"], found["group"], found["result", "status"]) == (0, "first", result.status)
    (metric,) = [
        each for each in found.metrics() if (each.name, dict(each.context.to_dict())) == ("accuracy", {"subset": "val"})
    ]
    table = metric.dataframe().sort_values("step")
    expected = [(step, value) for name, step, value in history(tmp_path / "a") if name == "val/accuracy"]
    assert list(zip(table["step"], table["value"], strict=True)) == expected
