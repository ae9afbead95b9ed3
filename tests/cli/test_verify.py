"""From a folder of runs to a decision, with further seeds trained where it takes them."""

import pytest

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.cli import verify as module
from lrbench_pl.cli.verify import stored_command, verify
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.folder import Record
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec
from tests.analysis.test_ranking import COMMON, write
from tests.cli.test_cli import call


def configured(folder, cwd):
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- lr_policy=tri\n- seed=0\n")
    (folder / ".hydra" / "hydra.yaml").write_text(
        f"hydra: {{runtime: {{cwd: {cwd}, config_sources: [{{path: /mine, provider: command-line}}]}}}}\n"
    )


def test_seeds_are_counted_until_it_is_decided(tmp_path, monkeypatch, capsys):
    for seed in range(20):
        write(tmp_path, "tri", 100, seed)
        write(tmp_path, "cos", None, seed)
    code, out, _ = call(monkeypatch, capsys, "verify", tmp_path, "--policy", "tri")
    assert code == 0
    assert "confirmed at confidence 0.95: tri" in out
    assert "17 of 17 seeds reached it, the other 3 not needed" in out
    code, out, _ = call(monkeypatch, capsys, "verify", tmp_path, "--policy", "cos")
    assert (code, out.split(" at ")[0]) == (3, "refuted")
    assert "0 of 3 seeds" in out
    assert call(monkeypatch, capsys, "verify", tmp_path)[0] == 2


def trained(calls):
    """A function that trains nothing and writes the result of each seed."""

    def train(arguments, directory):
        calls.append((arguments, directory))
        seed = int(arguments[-2].partition("=")[2])
        at = arguments[-1].partition("=")[2].strip("'")
        row = {**COMMON, "policy": "tri", "steps_to_target": 100, "seed": seed, "best_value": 0.98}
        RunResult(run_id="x", status="reached", **row).write(at)

    return train


def recorded(folder, *overrides):
    """Write the record of a run with this configuration."""
    spec = RunSpec.from_config(compose(["lr_policy=tri", "seed=0", *overrides]))
    Record(spec.run_id, spec.to_dict(), "2026-01-01T00:00:00+00:00", "host", 1).write(folder)
    return spec


def test_further_seeds_are_trained_and_not_repeated(tmp_path, monkeypatch):
    recorded(write(tmp_path, "tri", 100, 0))
    calls = []
    monkeypatch.setattr(module, "train", trained(calls))
    _, decision = verify(tmp_path, {}, most=3)
    assert (decision.verdict, decision.seeds) == ("undecided", 3)
    assert calls[0][0][0] == "lr_policy=tri"
    assert [each for each in calls[0][0] if each.startswith("seed=")] == ["seed=1"]
    _, decision = verify(tmp_path, {}, most=40)
    assert (decision.verdict, decision.seeds, len(calls)) == ("confirmed", 17, 16)


def test_the_stored_command_is_started_when_it_is_trusted(tmp_path, monkeypatch):
    configured(write(tmp_path, "tri", 100, 0), tmp_path)
    calls = []
    monkeypatch.setattr(module, "train", trained(calls))
    with pytest.raises(AnalysisError, match=r"need the specification in run.json, .* --trust"):
        verify(tmp_path, {}, most=2)
    verify(tmp_path, {}, most=2, trust=True, overrides=["threads=2"])
    assert calls == [(["--config-dir", "/mine", "lr_policy=tri", "threads=2", *calls[0][0][-2:]], tmp_path)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "these differ in optimizer .* --where optimizer=VALUE"),
        ({"policy_id": "other"}, "these differ in policy_id"),
    ],
)
def test_other_claims_are_refused(tmp_path, change, message):
    write(tmp_path, "tri", 100, 0)
    write(tmp_path, "tri", 100, 1, **change)
    with pytest.raises(AnalysisError, match=message):
        verify(tmp_path, {})


@pytest.mark.parametrize(("count", "named"), [(4, "p0, p1, p2, p3"), (5, "p0, p1, p2, p3, …")])
def test_a_list_that_is_cut_says_so(tmp_path, count, named):
    for number in range(count):
        write(tmp_path, f"p{number}", 100, 0)
    with pytest.raises(AnalysisError, match=rf"differ in policy \({named}\)"):
        verify(tmp_path, {})


def test_what_cannot_be_verified_is_one_line(tmp_path):
    run = write(tmp_path, "tri", None, 0, target=None)
    with pytest.raises(AnalysisError, match="verify needs runs with a target"):
        verify(tmp_path, {})
    with pytest.raises(AnalysisError, match="--where must name a column"):
        verify(tmp_path, {"color": "red"})
    with pytest.raises(AnalysisError, match="no finished run with policy=cos to verify"):
        verify(tmp_path, {"policy": "cos"})
    with pytest.raises(AnalysisError, match="which cannot be read"):
        stored_command(run)
    configured(run, "/nowhere/at/all")
    with pytest.raises(AnalysisError, match="which does not exist"):
        stored_command(run)
