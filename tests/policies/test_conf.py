"""Contract of every file in conf/lr_policy, and policies as plain data."""

import copy
import functools
import math
import subprocess
import sys

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lrbench_pl.policies import (
    LRBENCH_POLICIES,
    AdaptivePolicy,
    Constant,
    Sequential,
    from_config,
    segments,
    stretched,
    table,
    to_config,
)
from lrbench_pl.runs.config import compose, conf_dir

NO_POLICIES = ("auto", "best", "range")
NAMES = sorted(path.stem for path in (conf_dir() / "lr_policy").glob("*.yaml") if path.stem not in NO_POLICIES)


@functools.cache
def composed(name):
    return compose([f"lr_policy={name}", "lr=0.5"])


def configured(name, **given):
    """The policy of a file, with other values for the keys of the configuration."""
    config = copy.deepcopy(composed(name))
    config.update(given)
    return instantiate(config.lr_policy)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_satisfies_the_contract(name):
    text = (conf_dir() / "lr_policy" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = compose([f"lr_policy={name}", "lr=0.5", "max_steps=1000"])
    policy = instantiate(config.lr_policy)
    rates = table(policy, 1000)
    assert all(math.isfinite(lr) and 0 <= lr <= 0.5 + 1e-12 for lr in rates)
    assert max(rates) > (0.3 if name in ("triexp", "sinexp", "upcosexp") else 0.45)  # these rise and decay at once
    if not isinstance(policy, AdaptivePolicy):
        assert from_config(to_config(policy)) == policy
        assert from_config(OmegaConf.to_container(config.lr_policy, resolve=True)) == policy


@pytest.mark.parametrize("name", NAMES)
def test_lr_scales_it_and_max_steps_stretches_it(name):
    once, twice = (
        table(configured(name, max_steps=1000), 1000),
        table(configured(name, max_steps=1000, lr=1.0), 1000),
    )
    assert twice == pytest.approx([2 * lr for lr in once])
    longer = table(configured(name, max_steps=20000), 20_000)
    assert sum(longer) / 20_000 == pytest.approx(sum(once) / 1000, rel=0.03)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plateau"])  # adaptive: cannot be stretched
def test_stretching_equals_a_longer_budget(name):
    longer = table(configured(name, max_steps=4000), 4000)
    again = table(stretched(configured(name, max_steps=1000), 4), 4000)
    off = sum(abs(a - b) for a, b in zip(longer, again, strict=True)) / 4000
    assert off <= 0.01 * 0.5


@pytest.mark.parametrize("name", NAMES)
def test_it_works_in_a_tiny_budget(name):
    assert len(table(configured(name, max_steps=12), 12)) == 12


def test_all_names_of_lrbench_are_present():
    assert {name.lower() for name in LRBENCH_POLICIES} <= set(NAMES)
    assert {"linear", "cosine", "wsd", "onecycle", "sgdr", "plateau"} <= set(NAMES)


def test_there_are_composites_of_both_kinds():
    kinds = {name: configured(name).is_homogeneous for name in NAMES if name.startswith("composite")}
    assert kinds == {"composite_tri": True, "composite_tri_cosine": False, "composite_fix_sin_linear": False}
    ranges = [part.max_lr - part.base_lr for _, part in segments(configured("composite_tri"))]
    assert ranges == sorted(ranges, reverse=True)
    assert len(ranges) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "os.system", "command": "true"}, "_target_ must be lrbench_pl.policies.X .*; got 'os.system'"),
        ({"_target_": "lrbench_pl.policies.from_lrbench"}, "_target_ must be"),
        ({"_target_": "lrbench_pl.policies.PlateauPolicy"}, "_target_ must be"),
        ({"lr": 0.1}, "_target_ must be .*; got None"),
        ("Constant", "expected a mapping with _target_, got 'Constant'"),
        ({"_target_": "lrbench_pl.policies.Constant", "rate": 1}, "Constant has no field 'rate'; it takes lr"),
        ({"_target_": "lrbench_pl.policies.Constant"}, "Constant: missing 1 required positional argument: 'lr'"),
        ({"_target_": "lrbench_pl.policies.Constant", "lr": -1}, "lr must be a finite number of at least 0, got -1"),
        (
            {"_target_": "lrbench_pl.policies.Sequential", "policies": [{"_target_": "os.system"}], "milestones": []},
            "_target_ must be .*; got 'os.system'",
        ),
    ],
)
def test_only_policies_are_built_from_data(config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_an_unregistered_policy_cannot_be_stored():
    class Mine(Constant):
        pass

    with pytest.raises(TypeError, match="expected a policy of lrbench_pl"):
        to_config(Mine(0.1))
    with pytest.raises(TypeError, match="expected a policy of lrbench_pl"):
        to_config(Sequential((Mine(0.1),)))


def test_importing_policies_loads_only_the_standard_library():
    heavy = "[m for m in ('torch', 'numpy', 'omegaconf', 'hydra') if m in sys.modules]"
    code = f"import sys, lrbench_pl.policies; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
