"""Folders and databases of earlier versions are read; those of later versions are refused, naming the version."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.report import report
from lrbench_pl.cli.verify import verify
from lrbench_pl.files import FORMAT, NewerFormatError
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.folder import Record, finished_result
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from lrbench_pl.selection.database import DatabaseError, PolicyDatabase, read_sources
from tests.cli.test_cli import call
from tests.runs.test_run import run as train

HERE = Path(__file__).parent
OLD = HERE / "1"
NEWER = {"format": 99, "version": "9.8.7"}
SHORT = ("max_steps=200", "check_every=4", "batch_size=64")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def old(tmp_path):
    """Return a copy, since the fixtures must not be written."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def test_a_sweep_is_ranked_and_reported(old):
    runs = load_runs([old / "sweep"])
    assert not runs.skipped
    table = rank(runs.table)
    assert sum(table["runs"]) == 4
    assert set(table["policy"]) == set(runs.table["policy"])
    assert "<html" in report(runs)
    assert runs.table["settings"].null_count() == 0
    assert rank(runs.table, ["policy", "optimizer.momentum"])["optimizer.momentum"].to_list() == [0.9] * table.height


def test_settings_come_from_the_configuration_beside_the_result(old):
    path = old / "sweep" / "0" / "run.json"
    path.write_text(path.read_text().replace('"weight_decay": 0.0', '"weight_decay": 0.1'))
    with pytest.raises(AnalysisError, match=r"differ in optimizer.weight_decay \(0, 0.1\)"):
        rank(load_runs([old / "sweep"]).table)


def test_old_and_new_runs_are_pooled_as_seeds(old):
    policy = RunResult.read(old / "sweep" / "0" / "result.json").policy
    before = verify(old / "sweep", {"policy": policy})[0].runs
    its = RunSpec.from_config(compose([f"lr_policy={policy}", *SHORT, "seed=9"]))
    row = before[0][0].to_dict() | {"seed": 9, "settings": its.settings, "run_id": its.run_id}
    RunResult.from_dict(row).write(old / "sweep" / "9")
    assert len(verify(old / "sweep", {"policy": policy})[0].runs) == len(before) + 1


def test_the_commands_read_it(old, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "rank", old / "sweep")[0] == 0
    assert call(monkeypatch, capsys, "report", old / "sweep", "-o", old / "page.html")[0] == 0
    assert call(monkeypatch, capsys, "db", "add", old, "--db", old / "new.db")[0] == 0
    assert call(monkeypatch, capsys, "db", "list", "--db", old / "runs.sqlite")[0] == 0


def test_a_database_is_read_upgraded_and_recognizes_its_runs(old):
    with PolicyDatabase(old / "runs.sqlite") as database:
        before = database.read()
    assert before.runs
    assert not before.refused
    found = read_sources([old / "sweep"])
    assert not found.refused
    with PolicyDatabase(old / "new.db", create=True) as database:
        assert database.add(found.runs) == len(found.runs)
        assert database.add(before.runs) == len(
            {run.result.run_id for run in before.runs} - {run.result.run_id for run in found.runs}
        )
    with PolicyDatabase(old / "runs.sqlite", create=True) as database:
        database.add(found.runs)
        ids = [run.result.run_id for run in database.read().runs]
    assert len(ids) == len(set(ids))
    with PolicyDatabase(old / "runs.sqlite") as database:
        assert database._check_format() == FORMAT


def test_runs_added_from_an_old_folder_know_their_settings(old):
    for run in read_sources([old / "sweep"]).runs:
        assert run.result.settings["optimizer.momentum"] == 0.9


@pytest.mark.parametrize("number", range(4))
def test_a_finished_run_of_an_old_sweep_is_not_run_again(old, number):
    folder = old / "sweep" / str(number)
    row = RunResult.read(folder / "result.json")
    its = RunSpec.from_config(compose([f"lr_policy={row.policy}", *SHORT, f"seed={row.seed}"]))
    assert Record.read(folder).run_id == its.run_id
    assert finished_result(folder, its.run_id) == row


def test_a_run_from_a_policy_file_is_recognized_too(old):
    its = RunSpec.from_config(compose([f"lr_policy_file={old}/from_file.yaml", *SHORT, "seed=7"]))
    assert Record.read(old / "from_file").run_id == its.run_id


def test_an_old_record_that_cannot_be_compared_is_refused(old):
    path = old / "from_file" / "policy.yaml"
    path.unlink()
    refused = train(old / "from_file", f"lr_policy_file={old}/from_file.yaml", "seed=7")
    assert refused.status == "failed"
    assert "started by an earlier version" in refused.message


# -- later formats -------------------------------------------------------------------------------------------


def test_a_later_result_is_refused(old):
    path = old / "plateau" / "result.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "format": 99, "novel": 1, "versions": {"lrbench_pl": "9.8.7"}}))
    with pytest.raises(NewerFormatError, match=r"written in format 99, .*; install lrbench_pl 9.8.7 or later$"):
        RunResult.read(path)
    with pytest.raises(AnalysisError, match=r"install lrbench_pl 9\.8\.7 or later"):
        load_runs([old / "plateau"])
    (old / "plateau" / "run.json").unlink()
    refused = train(old / "plateau")
    assert refused.status == "failed"
    assert "install lrbench_pl 9.8.7 or later" in refused.message
    assert json.loads(path.read_text())["novel"] == 1


def test_a_later_record_is_refused_and_left_as_it_is(old):
    path = old / "plateau" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **NEWER}))
    before = {each: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    refused = train(path.parent)
    assert refused.status == "failed"
    assert "run.json: written in format 99" in refused.message
    assert "install lrbench_pl 9.8.7 or later" in refused.message
    assert {each: each.read_bytes() for each in before} == before


def test_a_later_database_is_refused(old):
    with PolicyDatabase(old / "new.db", create=True) as database, database._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE lrbench_format SET format = 99, version = '9.8.7'")
    for create in (False, True):
        with pytest.raises(DatabaseError, match=r"new.db: written in format 99, .* install lrbench_pl 9.8.7 or later"):
            PolicyDatabase(old / "new.db", create=create)


@pytest.mark.parametrize("found", [0, -1, "2", 1.5, True])
def test_an_invalid_format_number_is_refused(found):
    with pytest.raises(ValueError, match="format must be an integer of at least 1"):
        RunResult.from_dict({"run_id": "a", "policy": "p", "status": "missed", "format": found})


def test_a_later_checkpoint_is_refused_and_kept(tmp_path):
    folder = tmp_path / "run"
    stopped = train(folder, "max_time=1e-9", "target=1.0")
    assert stopped.status == "stopped"
    (path,) = (folder / "checkpoints").glob("*.ckpt")
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["lrbench_pl"] |= NEWER
    torch.save(checkpoint, path)
    refused = train(folder, "target=1.0")
    assert refused.status == "failed"
    assert "written in format 99" in refused.message
    assert "install lrbench_pl 9.8.7 or later" in refused.message
    assert path.exists()
    checkpoint["lrbench_pl"] = {k: v for k, v in checkpoint["lrbench_pl"].items() if k not in NEWER}  # format 1
    torch.save(checkpoint, path)
    assert train(folder, "target=1.0").status == "missed"


def test_written_files_have_a_format_number(tmp_path):
    assert train(tmp_path).format == FORMAT
    for name in ("result.json", "run.json"):
        assert json.loads((tmp_path / name).read_text())["format"] == FORMAT
