"""The row on disk: whole or not at all, and refused by name when it is not one."""

import json

import pytest

from lrbench_pl.files import ResultError, write_atomically
from lrbench_pl.runs.result import RunResult

ROW = RunResult(
    run_id="a1", policy="tri", status="reached", steps_to_target=40, best_value=0.98, versions={"torch": "2"}
)


def test_a_row_comes_back_as_it_was(tmp_path):
    assert RunResult.read(ROW.write(tmp_path)) == ROW


def test_what_is_no_number_is_missing(tmp_path):
    path = RunResult(run_id="a", policy="p", status="diverged", test_loss=float("nan")).write(tmp_path)
    assert json.loads(path.read_text())["test_loss"] is None


def test_nothing_is_left_beside_it_and_an_old_row_stays_when_writing_fails(tmp_path, monkeypatch):
    ROW.write(tmp_path)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "result.json", "half")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert RunResult.read(tmp_path / "result.json") == ROW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "won"}, "status must be one of reached, .*, got 'won'"),
        ({"steps_to_target": None}, "a run that reached its target must say steps_to_target, got None"),
        ({"steps_to_target": "40"}, "field 'steps_to_target' must be int | None, got '40'"),
        ({"steps_to_target": True}, "field 'steps_to_target' must be int"),
        ({"seed": 2**64}, "field 'seed' must be int | None, got 18446744073709551616"),
        ({"best_value": "high"}, "field 'best_value' must be float"),
        ({"policy": 3}, "field 'policy' must be str, got 3"),
        ({"versions": []}, r"field 'versions' must be dict\[str, str\], got \[\]"),
        ({"speed": 3}, "unknown field 'speed'"),
    ],
)
def test_a_bad_field_is_named(tmp_path, change, message):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**ROW.to_dict(), **change}))
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
def test_what_is_no_row_is_refused(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=message):
        RunResult.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultError, match="cannot be read"):
        RunResult.read(tmp_path / "result.json")
