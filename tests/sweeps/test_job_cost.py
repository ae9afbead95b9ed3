"""What a sweep spares its jobs of Hydra's work, it leaves as Hydra has it."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
import yaml
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError

from lrbench_pl import files
from lrbench_pl.runs.build import _look_for_plugins_once
from lrbench_pl.runs.config import conf_dir, register_resolvers, use_own_launchers
from lrbench_pl.runs.hydra_files import to_yaml
from lrbench_pl.sweeps import composer
from lrbench_pl.sweeps.composer import StoredConfig, copied, parse_references_once, without_hydra
from lrbench_pl.sweeps.hydra_job import run_as_hydra, run_job


@pytest.fixture(scope="module")
def composed():
    register_resolvers()
    use_own_launchers()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", ["lr_policy=tri", "model.hidden=[3,4]"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id = 3, "run_3"
    return cfg


@pytest.fixture
def config(composed):
    before = HydraConfig.instance().cfg
    yield copy.deepcopy(composed)
    HydraConfig.instance().cfg = before


def nodes(node, path=""):
    """Yield all nodes with what OmegaConf knows of them."""
    known = {key: value for key, value in vars(node._metadata).items()}
    content = node.__dict__.get("_content", node.__dict__.get("_val"))
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    yield path, type(node), known, None if inner else content
    for key, each in inner:
        assert each._get_parent() is node
        yield from nodes(each, f"{path}.{key}")


def test_a_copy_is_a_deep_copy(config):
    config.hydra._metadata.resolver_cache["now"]["x"] = [1]
    expected = list(nodes(copy.deepcopy(config)))
    assert len(expected) > 200
    found = copied(config)
    assert list(nodes(found)) == expected
    assert copied(config.hydra)._get_parent() is config
    own = {id(each) for each in [found, found.hydra, found.model, found.model.hidden, found._get_node("lr")]}
    assert not own & {id(each) for each in [config, config.hydra, config.model, config.model.hidden]}
    found.model.hidden.append(5)
    found.hydra._metadata.resolver_cache["now"]["x"].append(2)
    OmegaConf.set_readonly(found.model, True)
    assert list(nodes(config)) == expected


def test_a_copy_of_a_typed_configuration_keeps_its_types():
    @dataclass
    class Own:
        number: int | str = 1
        texts: list[str] | None = None

    config = OmegaConf.create({"own": Own, "path": Path("a"), "some": {"x": "${own.number}", "missing": "???"}})
    assert list(nodes(copied(config))) == list(nodes(copy.deepcopy(config)))
    with pytest.raises(ConfigAttributeError):
        copied(config).own.other = 3


def test_the_task_of_a_job_is_what_hydra_hands_to_it(config):
    expected = copy.deepcopy(config)
    with open_dict(expected):
        del expected["hydra"]
    assert list(nodes(without_hydra(config))) == list(nodes(expected))
    assert "hydra" in config


def test_a_stored_configuration_is_loaded_anew_each_time(config):
    expected = list(nodes(config))
    stored = StoredConfig(config)
    config.seed = 7
    first = stored.load()
    first.seed = 8
    assert list(nodes(stored.load())) == expected
    assert list(nodes(pickle.loads(pickle.dumps(stored)).load())) == expected


def test_a_configuration_of_a_class_of_the_program_reaches_other_processes():
    program = (
        "import sys, cloudpickle, dataclasses; from omegaconf import OmegaConf\n"
        "from lrbench_pl.sweeps.composer import StoredConfig\n"
        "@dataclasses.dataclass\nclass Own:\n    x: int = 3\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(StoredConfig(OmegaConf.create({'own': Own}))))"
    )
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=conf_dir().parent)
    assert pickle.loads(written.stdout).load().own.x == 3


def test_a_reference_is_parsed_once(config, monkeypatch):
    parse = composer.omegaconf.base.parse
    monkeypatch.setattr(composer.omegaconf.base, "parse", getattr(parse, "__wrapped__", parse))
    expected = [config.check_every, config.lr_policy.period]
    parse_references_once()
    parse_references_once()
    for _ in range(3):
        assert [config.check_every, config.lr_policy.period] == expected
    known = composer.omegaconf.base.parse.cache_info()
    assert known.hits >= 2 * known.misses > 0
    config.max_steps = 400
    assert [config.check_every, config.lr_policy.period] == [8, 80]


# -- Hydra's function for a job --------------------------------------------------------------------------------


class Seen:
    """A task function and a callback that record what they are given."""

    def __init__(self, error=None):
        self.all, self.error = [], error
        self.callbacks = Callbacks()
        self.callbacks.callbacks = [self]

    def record(self, name, config):
        known = OmegaConf.to_yaml(HydraConfig.get())
        directory, variable = os.getcwd(), os.environ.get("OF_A_JOB")
        self.all.append((name, OmegaConf.to_yaml(config), OmegaConf.is_struct(config), known, directory, variable))

    def on_job_start(self, config, **_):
        self.record("start", config)

    def on_job_end(self, config, job_return, **_):
        self.record("end", config)
        self.all.append((OmegaConf.to_yaml(job_return.cfg), OmegaConf.to_yaml(job_return.hydra_cfg), job_return.status))

    def __call__(self, cfg):
        self.record("task", cfg)
        cfg.seed = 99  # of this job alone
        if self.error is not None:
            raise self.error
        return cfg.names.policy


@pytest.mark.parametrize("error", [None, ValueError("its own")])
@pytest.mark.parametrize("chdir", [None, False, True])
def test_a_job_sees_what_it_sees_under_hydra(config, tmp_path, monkeypatch, chdir, error):
    monkeypatch.setattr("hydra.version.base", hydra.version.getbase() or None, raising=False)
    with open_dict(config):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(tmp_path / "sweep"), "${hydra.job.num}"
        config.hydra.job.chdir, config.hydra.job.env_set = chdir, {"OF_A_JOB": "${hydra.job.num}"}
        config.hydra.job_logging, config.hydra.overrides.task = {"version": 1, "root": None}, ["lr_policy=tri"]
    found = []
    for run in (run_as_hydra, run_job):
        seen, before, directory = Seen(error), HydraConfig.instance().cfg, os.getcwd()
        given = copy.deepcopy(config)
        returned = run(HydraContext(config_loader=None, callbacks=seen.callbacks), seen, given)
        assert HydraConfig.instance().cfg is before
        assert os.getcwd() == directory
        assert (tmp_path / "sweep" / "3").is_dir()
        assert given.seed == config.seed
        values = (returned.overrides, returned.working_dir, returned.task_name, returned.status, returned._return_value)
        found.append((seen.all, values, OmegaConf.to_yaml(given)))
    assert found[0] == found[1]
    assert found[1][1][3:] == ((JobStatus.COMPLETED, "tri") if error is None else (JobStatus.FAILED, error))
    assert (returned.cfg, returned.hydra_cfg) == (None, None)


def test_a_job_whose_files_hydra_writes_is_run_by_hydra(config, tmp_path):
    with open_dict(config):
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(tmp_path), "3"
        config.hydra.output_subdir, config.hydra.job_logging = ".hydra", {"version": 1, "root": None}
    seen = Seen()
    returned = run_job(HydraContext(config_loader=None, callbacks=seen.callbacks), seen, config)
    assert (tmp_path / "3" / ".hydra" / "config.yaml").is_file()
    assert returned.cfg is not None


# -- files -----------------------------------------------------------------------------------------------------


def test_yaml_is_written_as_omegaconf_writes_it(config):
    task = without_hydra(config)
    assert to_yaml(OmegaConf.to_container(task)) == OmegaConf.to_yaml(task)
    whole = to_yaml(OmegaConf.to_container(config, enum_to_str=True))
    assert yaml.safe_load(whole) == yaml.safe_load(OmegaConf.to_yaml(config))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "null",
            "~",
            "yes",
            "Off",
            "1e3",
            "0x1f",
            "1_000",
            ".inf",
            "2020-01-01",
            "12:30",
            "- a",
            "# a",
            "a: b",
        ),
        *(
            "a #b",
            "'",
            '"',
            "a\nb",
            "a\n",
            "\ta",
            " a ",
            "é",
            "日本語",
            "😀",
            "\x1b[31m",
            "\u2028",
            "${a}",
            "@x",
            "%",
            "!t",
        ),
        *("word " * 60, "x" * 300, "{a: 1}", "[1]", "*a", "&a", "a,b", "|", ">", "?", "=", "<<", "\\"),
    ],
)
def test_every_text_is_read_as_it_was_written(text):
    plain = {"a": {text or "empty": [text, {"b": text}]}, "c": 1.5, "d": None, "e": [True, 10**20], "f": [], "g": {}}
    assert yaml.safe_load(to_yaml(plain)) == yaml.safe_load(OmegaConf.to_yaml(OmegaConf.create(plain)))
    found = OmegaConf.create(to_yaml(plain))
    assert OmegaConf.to_container(found) == plain


def test_what_can_be_made_again_is_not_waited_for(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(files.os, "fsync", waited.append)
    files.write_atomically(tmp_path / "a", "x", is_durable=False)
    assert waited == []
    files.write_atomically(tmp_path / "a", "y")
    assert len(waited) == 1
    assert (tmp_path / "a").read_text() == "y"


def test_lightning_looks_for_plugins_once(monkeypatch):
    registry = pytest.importorskip("lightning_fabric.utilities.registry")
    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or ())
    for _ in range(3):
        _look_for_plugins_once()
        assert registry._load_external_callbacks("of.a.test") == []
    assert asked == ["of.a.test"]
