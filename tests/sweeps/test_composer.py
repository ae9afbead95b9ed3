"""Jobs are composed once, fast, and as Hydra composes them."""

import pickle

import pytest
from hydra import errors
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf

from lrbench_pl.runs.config import conf_dir, register_resolvers, use_own_launchers
from lrbench_pl.sweeps import composer
from lrbench_pl.sweeps.composer import SweepComposer


@pytest.fixture(scope="module")
def hydra():
    setup_globals()
    register_resolvers()
    use_own_launchers()
    return Hydra.create_main_hydra2(task_name="run", config_search_path=create_config_search_path(str(conf_dir())))


@pytest.fixture
def master(hydra):
    before = HydraConfig.instance().cfg
    yield hydra.compose_config(
        config_name="config",
        overrides=["hydra/launcher=basic", "hydra.sweep.dir=x", "seed=0"],
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
    )
    HydraConfig.instance().cfg = before


@pytest.mark.parametrize(
    "overrides",
    [
        ["lr_policy=tri", "seed=1"],
        ["seed=2", "lr_policy=tri", "+own=3", "model.hidden=[3,4]"],
        ["~model.hidden", "lr=0.3"],
        ["optimizer=adam", "optimizer.lr=2", "hydra.job.chdir=true", "hydra.job.env_copy=[PATH]"],
        ["lr_policy@lr_policy.otherwise=fix", "lr_policy=best"],
        ["trainer={max_steps:3}", "model={hidden:3}"],
        ["names.policy='a=b'", "++model.hidden=[1]"],
        ["hydra.searchpath=[file:///tmp]", "seed=1"],
        ["~logger"],
    ],
)
def test_a_job_is_what_hydra_composes(hydra, master, overrides):
    fast = SweepComposer(hydra.config_loader)
    fast.load_sweep_config(master, ["lr_policy=tri", "seed=7", "lr=0.7", "model.hidden=[9]"])
    expected = hydra.config_loader.load_sweep_config(master, overrides)
    for _ in range(3):  # composed, validated, composed again from what is known
        assert OmegaConf.to_yaml(fast.load_sweep_config(master, overrides)) == OmegaConf.to_yaml(expected)


@pytest.mark.parametrize("overrides", [["nothing=1"], ["lr_policy=nothing"], ["seed=1", "~nothing"], ["lr_policy=[a"]])
def test_a_mistake_is_reported_as_hydra_reports_it(hydra, master, overrides):
    with pytest.raises((errors.HydraException, errors.ConfigCompositionException)) as expected:
        hydra.config_loader.load_sweep_config(master, overrides)
    with pytest.raises(type(expected.value)) as found:
        SweepComposer(hydra.config_loader).load_sweep_config(master, overrides)
    assert str(found.value) == str(expected.value)


def test_a_change_of_one_job_changes_no_other(hydra, master):
    fast = SweepComposer(hydra.config_loader)
    first = fast.load_sweep_config(master, ["seed=1"])
    untouched = OmegaConf.to_yaml(first)
    second = fast.load_sweep_config(master, ["seed=2"])
    second.model.hidden.append(5)
    third = fast.load_sweep_config(master, ["seed=3"])
    assert OmegaConf.to_yaml(first) == untouched
    assert third.model.hidden == first.model.hidden


def test_the_files_are_merged_once_for_each_choice(hydra, master, monkeypatch):
    composed = []
    original = ConfigLoaderImpl.load_configuration

    def load(self, *arguments, **options):
        composed.append(arguments)
        return original(self, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load)
    fast = SweepComposer(hydra.config_loader)
    for policy in ("fix", "tri"):
        for seed in range(5):
            for _ in range(2):
                fast.load_sweep_config(master, [f"lr_policy={policy}", f"seed={seed}"])
    assert len(composed) == 2


def test_a_job_elsewhere_does_not_carry_the_others(hydra, master):
    fast = SweepComposer(hydra.config_loader)
    empty = len(pickle.dumps(fast.__getstate__()["_bases"]))
    fast.load_sweep_config(master, ["seed=1"])
    state = fast.__getstate__()
    assert [len(state[name]) for name in ("_validated", "_bases", "_files", "_parsed")] == [0] * 4
    assert len(pickle.dumps(state["_bases"])) == empty


def test_a_long_preparation_shows_its_progress(hydra, master, monkeypatch, capsys):
    times = iter(range(0, 10_000, 2))
    monkeypatch.setattr(composer, "_PAUSE_S", 100.0)
    monkeypatch.setattr(composer.time, "monotonic", lambda: float(next(times)))
    fast = SweepComposer(hydra.config_loader)
    for seed in range(20):
        fast.load_sweep_config(master, [f"seed={seed}"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("preparing the sweep: ")
    assert 3 < len(lines) < 20
