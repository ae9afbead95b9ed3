"""What the installed package is to programs that use little of it, or nothing."""

import importlib
import json
import os
import subprocess
import sys

import pytest

import lrbench_pl
from lrbench_pl.runs.config import compose, conf_dir

HEAVY = ["torch", "polars", "scipy", "plotly", "rich", "pytorch_lightning", "sqlalchemy", "wandb"]


def said(code, *options):
    """What a fresh Python prints, as JSON."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_public_name_is_there():
    code = "import json, lrbench_pl; print(json.dumps([str(getattr(lrbench_pl, name)) for name in lrbench_pl.__all__]))"
    assert len(said(code)) == len(lrbench_pl.__all__)
    assert set(lrbench_pl.__all__) <= set(dir(lrbench_pl))
    with pytest.raises(AttributeError, match="no attribute 'LRPolicyCalback'"):
        lrbench_pl.LRPolicyCalback  # noqa: B018
    assert lrbench_pl.policies.Constant(0.1)(0) == 0.1


def test_importing_it_is_quick_and_imports_nothing_else():
    code = f"""
import json, sys, time
begin = time.perf_counter()
import lrbench_pl
seconds = time.perf_counter() - begin
print(json.dumps([seconds, [name for name in {[*HEAVY, "omegaconf", "hydra"]} if name in sys.modules]]))
"""
    seconds, imported = said(code)
    assert imported == []
    assert seconds < 0.3


def test_other_hydra_programs_do_not_notice_the_plugins():
    """They are imported by every Hydra program: no warning, no resolver, nothing heavy, less than 20 ms."""
    code = f"""
import json, sys
from hydra.core.plugins import Plugins
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
times = Plugins.instance().get_stats().modules_import_time
ours = {{name: seconds for name, seconds in times.items() if "lrbench" in name}}
print(json.dumps([
    sorted(ours), sum(ours.values()), [name for name in sys.modules if name.split(".")[0] in {HEAVY}],
    OmegaConf.has_resolver("steps"), "lrbench" in str(ConfigStore.instance().repo["hydra"]),
]))
"""
    names, seconds, imported, resolver, stored = said(code, "-W", "error")
    assert names == ["hydra_plugins.lrbench_launchers", "hydra_plugins.lrbench_sweeper"]
    assert (imported, resolver, stored) == ([], False, False)
    assert seconds < 0.02


def test_the_configuration_is_a_package():
    package = importlib.import_module("lrbench_pl.conf")
    assert [os.path.realpath(entry) for entry in package.__path__] == [os.path.realpath(conf_dir())]


@pytest.mark.parametrize("path", sorted((conf_dir() / "hydra").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_bears_a_name_of_hydras_own(path):
    assert path.stem.startswith("lrbench")


@pytest.mark.parametrize("name", ["basic", "joblib", "ray", "submitit_local", "submitit_slurm"])
def test_launchers_have_short_names_in_this_program(name):
    import hydra
    from hydra.core.hydra_config import HydraConfig

    compose([f"hydra/launcher={name}"])
    assert HydraConfig.get().launcher._target_.startswith("hydra_plugins.lrbench_launchers.")
    assert hydra.utils.get_class(HydraConfig.get().launcher._target_)
