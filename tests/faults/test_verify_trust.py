"""`lrbench verify --run` executes nothing that stands in the folder of a run."""

import json
from pathlib import Path

import pytest

from lrbench_pl.analysis.load import AnalysisError
from lrbench_pl.cli.rebuild import overrides_of, rebuilt_command
from lrbench_pl.cli.verify import verify
from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose, conf_dir
from lrbench_pl.runs.folder import Record
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec, canonical
from tests.analysis.test_ranking import write

POLICIES = sorted(path.stem for path in (conf_dir() / "lr_policy").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
SHORT = ("lr_policy=fix", "max_steps=4", "check_every=2", "target=0.01", "trainer=cpu", "threads=1")


def recorded(folder, *overrides):
    spec = RunSpec.from_config(compose(list(overrides)))
    Record(spec.run_id, spec.to_dict(), "2026-01-01T00:00:00+00:00", "host", 1).write(folder)
    return spec


def touch(path):
    Path(path).touch()


def rebuilt(spec):
    return RunSpec.from_config(compose(overrides_of(spec)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_the_command_of_every_policy_is_rebuilt_from_its_specification(policy):
    spec = RunSpec.from_config(compose([f"lr_policy={policy}", "lr=0.07", "max_steps=700", "seed=3"]))
    assert rebuilt(spec).run_id == spec.run_id
    assert rebuilt(spec).settings == spec.settings


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"experiment={name}"] for name in EXPERIMENTS),
        ["model.hidden=[32,16]", "optimizer=adam", "optimizer.weight_decay=0.1", "batch_size=32", "dataset=synthetic"],
        ["param_groups=[{params:'*.bias',lr_scale:2.0}]", "trainer.accumulate_grad_batches=4"],
        ["lr_policy=composite_tri", "names.policy='my own'", "confirmations=3", "stop_at_target=false", "target=null"],
        ["monitor=val/loss", "mode=min", "target=0.1", "dataset.check_on=test", "+dataset.source.n=1e-05"],
        [r"+anything='it\'s, here: {a}'", "~trainer.num_sanity_val_steps", "compile=true", "study=x"],
        ["lr_policy=tri", "lr_policy.base_lr=${rate:0.25}", "lr_policy.max_lr=0.3"],
    ],
)
def test_other_configurations_are_rebuilt_too(overrides):
    overrides = [
        each.replace("''", "\\'").replace("${a}", "\\${a}") if "anything" in each else each for each in overrides
    ]
    spec = RunSpec.from_config(compose(overrides))
    found = rebuilt(spec)
    assert canonical(found.to_dict()) == canonical(spec.to_dict())


def test_a_policy_of_a_file_is_rebuilt_without_the_file(tmp_path):
    path = tmp_path / "mine" / "policy.yaml"
    path.parent.mkdir()
    path.write_text("_target_: lrbench_pl.policies.Step\ninit_lr: 0.1\ngamma: 0.5\nstep_size: 10\n")
    spec = RunSpec.from_config(compose([f"lr_policy_file={path}"]))
    path.unlink()
    assert rebuilt(spec).run_id == spec.run_id
    assert rebuilt(spec).policy_name == "mine"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model._target_=os.path.join"], "os.path.join"),
        (["+trainer.plugins=[{_target_: mine.Plugin}]"], "mine.Plugin"),
        (["workload={_target_: mine.Module}"], "mine.Module"),
        (["optimizer._target_=torch.load"], "torch.load"),
        (["model._target_=lrbench_pl.files.write_atomically"], "lrbench_pl.files.write_atomically"),
        (["lr_policy=best"], "lrbench_pl.selection.best.best"),
    ],
)
def test_code_of_others_needs_trust(tmp_path, overrides, named):
    folder = write(tmp_path, "tri", 100, 0)
    recorded(folder, *overrides)
    with pytest.raises(AnalysisError, match=f"would execute .*{named}.*, which is not of this package; --trust"):
        rebuilt_command(RunResult.read(folder / "result.json"), folder)


@pytest.mark.parametrize("configuration", [{}, {"task": 1}, {"task": {"settings": []}}])
def test_an_odd_specification_is_one_line(tmp_path, configuration):
    folder = write(tmp_path, "tri", 100, 0)
    Record("x", configuration, "2026-01-01T00:00:00+00:00", "host", 1).write(folder)
    with pytest.raises(AnalysisError, match="--trust"):
        rebuilt_command(RunResult.read(folder / "result.json"), folder)


@pytest.mark.slow
def test_what_stands_in_the_folder_is_not_executed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    assert experiment.run(compose([*SHORT, f"logger.csv.save_dir={folder}"]), folder).status == "reached"
    trace = tmp_path / "trace"
    (folder / ".hydra").mkdir()
    evil = f"+trainer.callbacks=[{{_target_:tests.faults.test_verify_trust.touch,path:'{trace}'}}]"
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*SHORT, evil]))
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: {tmp_path}, config_sources: []}}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seeds, _ = verify(folder, {}, share=0.5, most=2, overrides=["logger=none"])
    assert seeds.outcomes == [True, True]
    assert not trace.exists()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with pytest.raises(AnalysisError):  # and it is, if trusted: what it made is no callback
        verify(folder, {}, most=3, trust=True)
    assert trace.exists()
