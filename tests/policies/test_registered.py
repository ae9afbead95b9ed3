"""Contract of every registered policy type, also of types from other packages."""

import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lrbench_pl.cli import preview
from lrbench_pl.policies import (
    Constant,
    Factor,
    FactorPerStep,
    GroupPolicy,
    Horizon,
    Interval,
    Meaning,
    Milestones,
    MultiStep,
    Nested,
    OptimizerPolicy,
    Period,
    PerOptimizer,
    Policy,
    Positive,
    Rate,
    Sequential,
    Stages,
    Step,
    Steps,
    cut,
    from_config,
    meanings,
    policy_id,
    register_policy,
    registered,
    segments,
    stretched,
    table,
    to_config,
)
from lrbench_pl.runs import lint
from lrbench_pl.runs.config import read_policy
from lrbench_pl.runs.options import UserError, check_milestones
from lrbench_pl.selection.database import PolicyDatabase
from lrbench_pl.selection.records import stored_run

# -- another package: a new policy needs these lines and a YAML file -----------------------------------------------


@register_policy
@dataclass(frozen=True)
class Rex:
    """lr(t) = init_lr * (1 - z) / (1 - z / 2),  z = min(t, decay_steps) / decay_steps"""

    init_lr: Rate
    decay_steps: Horizon

    def __call__(self, t: int) -> float:
        z = min(t, self.decay_steps) / self.decay_steps
        return self.init_lr * (1 - z) / (1 - z / 2)


@register_policy
@dataclass(frozen=True)
class Scaled:
    policy: Nested
    share: Positive = 1.0

    def __call__(self, t: int) -> float:
        return self.share * self.policy(t)


@register_policy
@dataclass(frozen=True)
class Relay:
    """Composite with an additional field."""

    policies: Stages
    milestones: Milestones
    share: Positive

    def __post_init__(self) -> None:
        if len(self.milestones) != len(self.policies) - 1:
            raise ValueError("milestones must be one fewer than policies")

    def __call__(self, t: int) -> float:
        return self.share * Sequential(self.policies, self.milestones)(t)


@register_policy
@dataclass(frozen=True)
class Stairs:
    init_lr: Rate
    gamma: Factor
    every: Interval
    per_step: FactorPerStep = 1.0

    def __call__(self, t: int) -> float:
        return self.init_lr * self.gamma ** (t // self.every) * self.per_step**t


@register_policy
@dataclass(frozen=True)
class Saw:
    max_lr: Rate
    cycle: Period
    shape: Literal["up", "down"] = "down"

    def __call__(self, t: int) -> float:
        u = t % self.cycle / self.cycle
        return self.max_lr * (1 - u if self.shape == "down" else u)


FOREIGN = [
    Rex(0.1, 1000),
    Scaled(Rex(0.2, 1000), 0.5),
    Relay((Constant(0.1), Rex(0.1, 600)), (400,), 0.5),
    Stairs(0.1, 0.5, 250),
    Saw(0.1, 500),
    Sequential((Constant(0.05), Scaled(MultiStep(0.1, 0.5, (100, 200)))), (300,)),
    OptimizerPolicy(Rex(0.1, 1000), Saw(0.9, 500), None, (GroupPolicy("head", Stairs(0.1, 0.5, 250)),)),
    PerOptimizer((Rex(0.1, 1000), OptimizerPolicy(Constant(0.1), weight_decay=Rex(0.01, 1000)))),
]
TYPES = list(registered().values())

# -- the contract -------------------------------------------------------------------------------------------------

counts = st.integers(1, 500)
KINDS = {
    "rate": st.floats(0, 10),
    "number": st.floats(0.1, 5),
    "factor": st.floats(1e-6, 1),
    "factor per step": st.floats(1e-6, 1),
    "per step": st.one_of(st.floats(0, 10), st.floats(-10, 10)),
    "steps": counts,
    "horizon": counts,
    "interval": counts,
    "period": counts,
    "phase": st.integers(-500, 500),
    "moment": st.integers(0, 500),
    "milestones": st.lists(counts, max_size=3, unique=True).map(sorted),
    "nested": st.builds(Step, st.floats(0, 10), st.floats(1e-6, 1), counts),
    "group": st.one_of(st.text(min_size=1), st.integers(0, 9)),
}
KINDS["optional"] = st.one_of(st.none(), KINDS["nested"])
KINDS["stages"] = st.lists(KINDS["nested"], min_size=1, max_size=3)
PARTS = {
    OptimizerPolicy: st.lists(st.builds(GroupPolicy, KINDS["group"], KINDS["nested"]), max_size=2),
    PerOptimizer: KINDS["stages"],
}


@st.composite
def policies_of(draw, kind):
    """Any policy of a type, built from the meanings of its fields."""
    hints, values = get_type_hints(kind), {}
    for name, meaning in meanings(kind).items():
        if hasattr(kind, name) and draw(st.booleans()):
            continue  # the default
        of_kind = st.sampled_from(get_args(hints[name])) if meaning.kind == "choice" else KINDS.get(meaning.kind)
        if meaning.kind == "parts":
            of_kind = PARTS[kind]
        values[name] = draw(of_kind)
    try:
        return kind(**values)
    except ValueError:  # the values do not fit together
        assume(False)


contract = settings(suppress_health_check=[HealthCheck.filter_too_much], deadline=None, max_examples=40)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__qualname__)
@contract
@given(data=st.data())
def test_a_registered_policy_is_a_value_that_is_stored_stretched_and_cut(kind, data):
    policy = data.draw(policies_of(kind))
    assert isinstance(policy, Policy)
    assert eval(repr(policy), {made.__name__: made for made in TYPES}) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, pickle.loads(pickle.dumps(policy))}) == 1
    assert from_config(yaml.safe_load(yaml.safe_dump(to_config(policy)))) == policy
    assert all(math.isfinite(rate) and rate >= 0 for rate in table(policy, 50))

    factor, t, n = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 2000)), data.draw(st.integers(1, 600))
    assert stretched(policy, factor)(factor * t) == pytest.approx(policy(t), rel=1e-6, abs=1e-9)
    assert stretched(policy, 1) == policy
    assert table(cut(policy, n), n) == table(policy, n)
    assert all(start < n for start, _ in segments(cut(policy, n)))
    lint.lint(lint.TrainingPlan(policy, max_steps=100))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__qualname__)
@pytest.mark.parametrize("bad", [None, "0.1", -math.inf, math.nan, True])
def test_every_field_of_every_type_refuses_invalid_values(kind, bad):
    """The message names the field, and nothing else in the policy runs before it."""
    sample = {"nested": Constant(0.1), "stages": (Constant(0.1),), "milestones": (), "phase": 0, "optional": None}
    sample["parts"] = () if kind is OptimizerPolicy else (Constant(0.1),)
    good = {name: sample.get(meaning.kind, 1) for name, meaning in meanings(kind).items()}
    good |= {name: get_args(get_type_hints(kind)[name])[0] for name, m in meanings(kind).items() if m.kind == "choice"}
    kind(**good)
    for name in good:
        kind_of_field = meanings(kind)[name].kind
        if (kind_of_field == "optional" and bad is None) or (kind_of_field == "group" and bad == "0.1"):
            continue
        with pytest.raises(ValueError, match=rf"^{name} must .*, got {bad!r}"):
            kind(**{**good, name: bad})


# -- types from other packages ------------------------------------------------------------------------------------


def test_a_foreign_policy_is_stored_as_hydra_would_call_it_and_comes_back():
    config = to_config(FOREIGN[2])
    assert config == {
        "_target_": f"{__name__}.Relay",
        "policies": [
            {"_target_": "lrbench_pl.policies.Constant", "lr": 0.1},
            {"_target_": f"{__name__}.Rex", "init_lr": 0.1, "decay_steps": 600},
        ],
        "milestones": [400],
        "share": 0.5,
    }
    assert from_config({**config, "_convert_": "all"}) == FOREIGN[2]


@pytest.mark.parametrize("policy", FOREIGN, ids=lambda policy: type(policy).__name__)
def test_a_foreign_policy_goes_through_file_and_database(policy, tmp_path):
    (tmp_path / "policy.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(to_config(policy))))
    assert read_policy(tmp_path / "policy.yaml") == policy
    row = {"run_id": "r", "policy": "p", "dataset": "digits", "model": "mlp", "optimizer": "momentum", "seed": 0}
    row |= {"batch_size": 64, "max_steps": 1000, "monitor": "val/accuracy", "status": "missed", "steps_run": 1000}
    with PolicyDatabase(tmp_path / "runs.db", create=True) as database:
        database.add([stored_run(row, to_config(policy))])
        (stored,) = database.read().runs
    assert stored.policy == policy
    assert stored.result.policy_id == policy_id(policy, 1000)


def test_stretching_and_cutting_follow_the_fields():
    assert stretched(FOREIGN[0], 2) == Rex(0.1, 2000)
    assert stretched(FOREIGN[1], 2) == Scaled(Rex(0.2, 2000), 0.5)
    assert stretched(FOREIGN[2], 0.5) == Relay((Constant(0.1), Rex(0.1, 300)), (200,), 0.5)
    assert stretched(Stairs(0.1, 0.5, 100, 0.25), 2) == Stairs(0.1, 0.5, 200, 0.5)
    assert cut(FOREIGN[2], 400) == Relay((Constant(0.1),), (), 0.5)  # share still applies
    assert cut(Scaled(MultiStep(0.1, 0.5, (10, 40)), 0.5), 30) == Scaled(MultiStep(0.1, 0.5, (10,)), 0.5)


@pytest.mark.parametrize(
    ("policy", "rule", "words"),
    [
        (FOREIGN[0], None, ""),
        (Rex(0.1, 500), "horizon", "500 steps run at 0; set decay_steps to 1000"),
        (Rex(0.1, 2000), "horizon", "the decay would take until step 2000"),
        (Stairs(0.1, 0.5, 2000), "never-runs", "Stairs would drop first after 2000 steps, but has 1000"),
        (Stairs(0.1, 0.01, 400), "jump", "drops to 0.01 of itself at step 400; set gamma to 0.1 or more"),
        (Stairs(0.1, 0.9, 300), "end", "lower gamma, or let it drop more often"),
        (Stairs(0.1, 1.0, 300, 0.9999), "end", "with per_step=0.995405 1 % is left"),
        (Saw(0.1, 800), "horizon", "ends 25 % into a cycle of 800 steps, at 75 % of the peak; set cycle to 1000"),
        (Saw(0.1, 10), "short", "a cycle takes 10 steps"),
        (Relay((Constant(0.1), Constant(0.05)), (1000,), 0.5), "never-runs", "Constant would begin at step 1000"),
    ],
)
def test_lint_reads_the_fields(policy, rule, words):
    found = lint.lint(lint.TrainingPlan(policy, max_steps=1000, check_every=20))
    assert [finding.rule for finding in found] == ([rule] if rule else [])
    assert words in "".join(map(str, found))


def test_a_late_milestone_of_a_foreign_policy_is_refused():
    with pytest.raises(UserError, match=r"milestones must lie below max_steps \(400\), got 400"):
        check_milestones(FOREIGN[2], 400)
    check_milestones(FOREIGN[2], 401)


def test_one_yaml_and_it_can_be_previewed_and_linted(tmp_path):
    (tmp_path / "lr_policy").mkdir()
    (tmp_path / "lr_policy" / "rex.yaml").write_text(
        f"_target_: {__name__}.Rex\ninit_lr: ${{lr}}\ndecay_steps: ${{steps:0.5}}\n"
    )
    own = f"hydra.searchpath=['file://{tmp_path}']"
    (run,) = preview.planned_runs([own, "lr_policy=rex", "lr=0.4", "max_steps=200"])
    assert run.plan.policy == Rex(0.4, 100)
    assert preview.curve(run).policy_id == policy_id(Rex(0.4, 100), 200)
    assert [finding.rule for finding in lint.lint(run.plan)] == ["horizon"]


# -- what is refused ----------------------------------------------------------------------------------------------


def test_unregistered_types_are_refused(tmp_path):
    """Not even if it is a policy class; its module is not imported to find out."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    code = (
        f"import sys, json; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from lrbench_pl.policies import from_config\n"
        "try:\n    from_config({'_target_': 'evil.Evil'})\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "or by an entry point lrbench_pl.policies; got 'evil.Evil'" in done.stdout
    assert not (tmp_path / "ran").exists()
    for name in ("Rex.__init__", "Policy", "json.loads", "yaml.safe_load"):
        with pytest.raises(ValueError, match=r"registered with register_policy by .*; got"):
            from_config({"_target_": f"{__name__}.{name}"})


def test_an_installed_package_registers_by_entry_point(tmp_path):
    info = tmp_path / "rex_policies-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rex_policies\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lrbench_pl.policies]\nrex = rex_policies\n")
    (tmp_path / "rex_policies.py").write_text(
        "from dataclasses import dataclass\n"
        "from lrbench_pl.policies import Rate, register_policy\n\n\n"
        "@register_policy\n@dataclass(frozen=True)\nclass Flat:\n"
        "    lr: Rate\n\n    def __call__(self, t):\n        return self.lr\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from lrbench_pl.policies import from_config\n"
        f"print(from_config({json.dumps({'_target_': 'rex_policies.Flat', 'lr': 0.1})}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Flat(lr=0.1)\n"
    (tmp_path / "rex_policies.py").write_text("import nothing_of_that_name\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the policies of entry point rex (rex_policies) cannot be imported: No module named" in done.stderr


class NotFrozen:
    lr: Rate

    def __call__(self, t):
        return self.lr


@dataclass(frozen=True)
class NotCallable:
    lr: Rate


@dataclass(frozen=True)
class NoMeaning:
    lr: float

    def __call__(self, t):
        return self.lr


@dataclass(frozen=True)
class NoMilestones:
    policies: Stages

    def __call__(self, t):
        return 0.0


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NotFrozen, r"NotFrozen must be a frozen dataclass: write @dataclass\(frozen=True\)"),
        (dataclass(NotFrozen), "NotFrozen must be a frozen dataclass"),
        (NotCallable, r"NotCallable must have __call__\(self, t\)"),
        (NoMeaning, "NoMeaning.lr must be annotated with its meaning, such as Rate, .*; got <class 'float'>"),
        (NoMilestones, "NoMilestones.policies needs the field 'milestones' too"),
    ],
)
def test_an_incomplete_class_is_not_registered(cls, message):
    with pytest.raises(TypeError, match=message):
        register_policy(cls)
    assert cls not in registered().values()


def test_a_local_class_is_not_registered():
    @dataclass(frozen=True)
    class Local:
        steps: Steps

        def __call__(self, t):
            return 0.0

    with pytest.raises(TypeError, match=r"Local must be defined at the top level of a module"):
        register_policy(Local)


def test_a_meaning_of_your_own_is_checked_and_stretched():
    meaning = meanings(Stairs)["per_step"]
    assert isinstance(meaning, Meaning)
    assert meaning.stretch(0.25, 2) == 0.5
    with pytest.raises(ValueError, match=r"x must lie in \(0, 1\], got 2"):
        meaning.check("x", 2)
