"""LRBench's 34 names against the direct constructors."""

import math

import pytest

from lrbench_pl.policies import (
    LRBENCH_POLICIES,
    Constant,
    Cyclic,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Sequential,
    Sigmoid,
    Step,
    from_lrbench,
)

K = {"k0": 0.1, "k1": 0.6, "l": 20}
WAVES = {
    "TRI": ("triangle", 40, 0),
    "DTRI": ("triangle", 40, 20),
    "SIN": ("sine", 40, 0),
    "DSIN": ("sine", 40, 20),
    "COS": ("cosine", 40, 0),
    "UPCOS": ("cosine", 40, -20),
    "RSW": ("sawtooth", 20, 0),
    "SINRSW": ("quarter_sine", 20, 0),
    "COSRSW": ("half_cosine", 20, 0),
}
DIRECT = {
    "FIX": ({"k0": 0.1}, Constant(0.1)),
    "STEP": ({"k0": 0.1, "gamma": 0.5, "l": 7}, Step(0.1, 0.5, 7)),
    "NSTEP": ({"k0": 0.1, "gamma": 0.5, "l": [7, 9]}, MultiStep(0.1, 0.5, (7, 9))),
    "EXP": ({"k0": 0.1, "gamma": 0.5}, Exponential(0.1, 0.5)),
    "INV": ({"k0": 0.1, "gamma": 0.5, "p": 2}, InverseTime(0.1, 0.5, 2)),
    "POLY": ({"k0": 0.1, "p": 2, "l": 7}, Polynomial(0.1, 7, 2)),
    "SIG": ({"k0": 0.1, "gamma": -0.5, "l": 7}, Sigmoid(0.1, -0.5, 7)),
}
for family, (wave, period, phase) in WAVES.items():
    DIRECT[family] = (K, Cyclic(0.1, 0.6, period, wave, phase=phase))
    DIRECT[family + "2"] = (K, Cyclic(0.1, 0.6, period, wave, "halving", phase=phase))
    DIRECT[family + "EXP"] = ({**K, "gamma": 0.9}, Cyclic(0.1, 0.6, period, wave, "exponential", 0.9, phase))


def test_all_34_are_present():
    assert len(LRBENCH_POLICIES) == 34
    assert set(DIRECT) == set(LRBENCH_POLICIES)


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_each_equals_the_direct_constructor(name):
    parameters, direct = DIRECT[name]
    assert from_lrbench({"lrPolicy": name, **parameters}) == direct


def published(name: str, t: int, l: int, gamma: float) -> float:  # noqa: E741 - LRBench's name
    """g(t) of the wave families from the paper's formulas; not valid at the restarts."""
    family = name.removesuffix("EXP").removesuffix("2")
    ahead = t + l if family[0] == "D" else t
    teeth = 1 - t / l % 1
    g = {
        "TRI": 2 / math.pi * abs(math.asin(math.sin(math.pi * ahead / (2 * l)))),
        "SIN": abs(math.sin(math.pi * ahead / (2 * l))),
        "COS": (1 + math.cos(math.pi * t / l)) / 2,
        "UPCOS": (1 + math.cos(math.pi * (t / l + 1))) / 2,
        "RSW": teeth,
        "SINRSW": math.sin(math.pi / 2 * teeth),
        "COSRSW": (1 - math.cos(math.pi * teeth)) / 2,
    }[family.removeprefix("D")]
    if name.endswith("2"):
        cycles = {"COS": (t + l) / (2 * l), "UPCOS": t / (2 * l)}
        g /= 2 ** math.floor(cycles.get(family, t / l if "RSW" in family else ahead / (2 * l)))
    return g * gamma**t if name.endswith("EXP") else g


@pytest.mark.parametrize("name", [family + suffix for family in WAVES for suffix in ("", "2", "EXP")])
def test_the_waves_follow_the_published_formulas(name):
    parameters, _ = DIRECT[name]
    policy = from_lrbench({"lrPolicy": name, **parameters})
    for t in range(150):
        assert policy(t) == pytest.approx(0.1 + 0.5 * published(name, t, 20, 0.9), abs=1e-12), f"at t = {t}"


def test_the_bounds_may_come_in_either_order():
    up = from_lrbench({"lrPolicy": "TRI", "k0": 0.1, "k1": 0.6, "l": 20})
    assert from_lrbench({"lrPolicy": "TRI", "k0": 0.6, "k1": 0.1, "l": 20}) == up
    assert from_lrbench({"lrPolicy": "POLY", "k0": 0.1, "k1": 0.6, "p": 1, "l": 20}) == Polynomial(0.6, 20, 1, 0.1)


def test_a_list_is_a_composite():
    parts = [{"lrPolicy": "FIX", "k0": 0.1}, {"lrPolicy": "TRI", **K}]
    assert from_lrbench(parts, boundaries=[30]) == Sequential((Constant(0.1), from_lrbench(parts[1])), (30,))


@pytest.mark.parametrize(
    ("parameters", "boundaries", "message"),
    [
        pytest.param({"lrPolicy": "TRY"}, None, "lrPolicy must be one of FIX, .*, got 'TRY'", id="name"),
        pytest.param({"k0": 0.1}, None, "lrPolicy must be one of .*, got None", id="no-name"),
        pytest.param(
            {"lrPolicy": "TRI", "k0": 1, "k1": 2},
            None,
            "TRI: parameter 'l' is missing; TRI takes k0, k1, l",
            id="missing",
        ),
        pytest.param(
            {"lrPolicy": "FIX", "k0": 1, "l": 2}, None, "FIX: unknown parameter 'l'; FIX takes k0", id="extra"
        ),
        pytest.param(
            {"lrPolicy": "EXP", "k0": 1, "gamma": 2}, None, r"EXP: gamma must lie in \(0, 1\], got 2", id="range"
        ),
        pytest.param(
            {"lrPolicy": "COS", **K, "l": 0.5}, None, "COS: l must be an integer of at least 1, got 0.5", id="l"
        ),
        pytest.param(
            {"lrPolicy": "COS", **K, "k0": -1}, None, "COS: k0 must be a finite number of at least 0", id="k0"
        ),
        pytest.param({"lrPolicy": "FIX", "k0": 1}, [5], "boundaries need a list of policies", id="boundaries"),
        pytest.param("FIX", None, "expected a mapping with lrPolicy, or a list of them, got 'FIX'", id="text"),
        pytest.param(["FIX"], None, "expected a mapping with lrPolicy, got 'FIX'", id="list-of-text"),
        pytest.param(
            [{"lrPolicy": "FIX", "k0": 1}] * 2, [], "milestones must be one fewer than policies", id="no-boundary"
        ),
    ],
)
def test_an_invalid_parameter_is_named(parameters, boundaries, message):
    with pytest.raises(ValueError, match=message):
        from_lrbench(parameters, boundaries)
