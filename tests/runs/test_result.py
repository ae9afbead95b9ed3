"""Results on disk: complete or absent, and refused with the name of the bad field."""

import json
from dataclasses import fields

import pytest

from lrbench_pl.files import ResultError, write_atomically
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.result import Outcome, RunResult, Setup
from lrbench_pl.runs.spec import RunSpec, Task

RESULT = RunResult(
    run_id="a1", policy="tri", status="reached", steps_to_target=40, best_value=0.98, versions={"torch": "2"}
)


def test_a_result_is_read_as_it_was_written(tmp_path):
    assert RunResult.read(RESULT.write(tmp_path)) == RESULT


def test_a_non_finite_number_is_missing(tmp_path):
    path = RunResult(run_id="a", policy="p", status="diverged", test_loss=float("nan")).write(tmp_path)
    assert json.loads(path.read_text())["test_loss"] is None


def test_a_failing_write_keeps_the_old_result_and_leaves_no_file(tmp_path, monkeypatch):
    RESULT.write(tmp_path)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "result.json", "half")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert RunResult.read(tmp_path / "result.json") == RESULT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "won"}, "status must be one of reached, .*, got 'won'"),
        ({"steps_to_target": None}, "status 'reached' requires steps_to_target, got None"),
        ({"steps_to_target": "40"}, "field 'steps_to_target' must be int, got '40'"),
        ({"steps_to_target": True}, "field 'steps_to_target' must be int"),
        ({"seed": 2**64}, "field 'seed' must be int, got 18446744073709551616"),
        ({"best_value": "high"}, "field 'best_value' must be float"),
        ({"policy": 3}, "field 'policy' must be str, got 3"),
        ({"versions": []}, r"field 'versions' must be dict, got \[\]"),
        ({"speed": 3}, "unknown field 'speed'"),
    ],
)
def test_a_bad_field_is_named(tmp_path, change, message):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**RESULT.to_dict(), **change}))
    with pytest.raises(ResultError, match=message) as caught:
        RunResult.read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run_id": "a1", "pol', "not complete JSON"),
        ("", "not complete JSON"),
        ("[]", "expected one JSON object, got list"),
        ('{"policy": "tri", "status": "missed"}', "field 'run_id' is missing"),
    ],
)
def test_an_invalid_result_is_refused(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        RunResult.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultError, match="cannot be read"):
        RunResult.read(tmp_path / "result.json")


def test_a_result_is_specification_setup_and_outcome():
    spec = RunSpec.from_config(compose(["lr_policy=tri", "lr=0.1", "seed=3"]))
    outcome = Outcome("reached", message="at step 20", steps_to_target=20, best_value=0.9)
    result = RunResult.build(spec, Setup(device="cpu", policy_id="x"), outcome)
    assert result.task == spec.task
    assert result.outcome == outcome
    assert (result.run_id, result.policy, result.lr, result.seed) == (spec.run_id, "tri", 0.1, 3)
    assert (result.device, result.policy_id, result.settings) == ("cpu", "x", spec.settings)


def test_every_field_is_of_one_part():
    parts = [{field.name for field in fields(part)} for part in (Task, Setup, Outcome)]
    known = {"run_id", "policy", "lr", "seed", "format"}.union(*parts)
    assert known == {field.name for field in fields(RunResult)}


@pytest.mark.parametrize("field", ["dataset", "model", "optimizer"])
def test_a_part_without_a_name_is_unknown_in_task_and_result(field):
    spec = RunSpec.from_config(compose([f"names.{field}=null"]))
    result = RunResult.build(spec, Setup(), Outcome("missed"))
    assert getattr(result, field) is None
    assert result.task == spec.task
