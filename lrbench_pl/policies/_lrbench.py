"""Policies from LRBench's parameters: its 34 names with k0, k1, l, p and gamma."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from lrbench_pl.policies import _checks as check
from lrbench_pl.policies._basic import (
    Constant,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Sigmoid,
    Step,
)
from lrbench_pl.policies._compose import Policy, Sequential
from lrbench_pl.policies._cyclic import Cyclic, Decay, Wave


def from_lrbench(
    parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]], boundaries: Sequence[int] | None = None
) -> Policy:
    """Build a policy from LRBench's parameters, or a composite from a list of them.

    ``k0`` and ``k1`` are the two bounds in either order. ``l`` is half a cycle (a full one for the RSW families, the
    step size or the decay length elsewhere), ``p`` a power. Errors of the reference code are not reproduced.

    Args:
        parameters: ``{"lrPolicy": NAME, …}`` with one of the 34 names, or a list of such mappings.
        boundaries: Steps at which the next policy of the list starts.

    Raises:
        ValueError: If the name is unknown, or a parameter is missing, unexpected or out of range. The message names the
            policy, the parameter and the parameters that the policy takes.

    Example:
        >>> from_lrbench({"lrPolicy": "TRIEXP", "k0": 0.001, "k1": 0.006, "l": 2000, "gamma": 0.99994})
        Cyclic(base_lr=0.001, max_lr=0.006, period=4000, wave='triangle', decay='exponential', gamma=0.99994, phase=0)
        >>> composite = from_lrbench([{"lrPolicy": "FIX", "k0": 0.1}, {"lrPolicy": "FIX", "k0": 0.01}], boundaries=[30])
        >>> composite(29), composite(30)
        (0.1, 0.01)

    Source: the public reference code of LRBench (git-disl/LRBench).
    """
    if isinstance(parameters, Mapping):
        if boundaries is not None:
            raise ValueError("boundaries need a list of policies, got one policy; leave them out or give a list")
        return _one(parameters)
    if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Sequence):
        raise ValueError(f"expected a mapping with lrPolicy, or a list of them, got {parameters!r}")
    return Sequential(tuple(_one(each) for each in parameters), tuple(boundaries or ()))


def _one(parameters: Mapping[str, Any]) -> Policy:
    if not isinstance(parameters, Mapping):
        raise ValueError(f"expected a mapping with lrPolicy, got {parameters!r}")
    given = dict(parameters)
    name = given.pop("lrPolicy", None)
    if name not in LRBENCH_POLICIES:
        raise ValueError(f"lrPolicy must be one of {', '.join(LRBENCH_POLICIES)}, got {name!r}")
    needed, optional, build = LRBENCH_POLICIES[name]
    takes = f"{name} takes {', '.join(needed + optional)}"
    for parameter in needed:
        if given.get(parameter) is None:
            raise ValueError(f"{name}: parameter {parameter!r} is missing; {takes}")
    for parameter in given:
        if parameter not in needed + optional:
            raise ValueError(f"{name}: unknown parameter {parameter!r}; {takes}")
    try:
        return build(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {takes}") from error


def _poly(k0: float, p: float, l: int, k1: float = 0.0) -> Policy:  # noqa: E741 - LRBench's name
    return Polynomial(init_lr=max(k0, k1), decay_steps=l, power=p, end_lr=min(k0, k1))


def _cyclic(wave: Wave, decay: Decay, cycle: int, ahead: int) -> Callable[..., Policy]:
    """Return a builder of cyclic policies with period and phase in units of ``l``."""

    def build(k0: float, k1: float, l: int, gamma: float = 1.0) -> Policy:  # noqa: E741 - LRBench's name
        check.rate("k0", k0)
        check.rate("k1", k1)
        check.count("l", l)
        return Cyclic(min(k0, k1), max(k0, k1), cycle * l, wave, decay, gamma, phase=ahead * l)

    return build


_Reader = tuple[tuple[str, ...], tuple[str, ...], Callable[..., Policy]]

_FAMILIES: dict[str, tuple[Wave, int, int]] = {
    "TRI": ("triangle", 2, 0),
    "DTRI": ("triangle", 2, 1),
    "SIN": ("sine", 2, 0),
    "DSIN": ("sine", 2, 1),
    "COS": ("cosine", 2, 0),
    "UPCOS": ("cosine", 2, -1),  # negative: the first cycle has the full height
    "RSW": ("sawtooth", 1, 0),
    "SINRSW": ("quarter_sine", 1, 0),
    "COSRSW": ("half_cosine", 1, 0),
}

LRBENCH_POLICIES: dict[str, _Reader] = {
    "FIX": (("k0",), (), lambda k0: Constant(k0)),
    "STEP": (("k0", "gamma", "l"), (), lambda k0, gamma, l: Step(k0, gamma, l)),  # noqa: E741
    "NSTEP": (("k0", "gamma", "l"), (), lambda k0, gamma, l: MultiStep(k0, gamma, l)),  # noqa: E741
    "EXP": (("k0", "gamma"), (), lambda k0, gamma: Exponential(k0, gamma)),
    "INV": (("k0", "gamma", "p"), (), lambda k0, gamma, p: InverseTime(k0, gamma, p)),
    "POLY": (("k0", "p", "l"), ("k1",), _poly),
    "SIG": (("k0", "gamma", "l"), (), lambda k0, gamma, l: Sigmoid(k0, gamma, l)),  # noqa: E741
    **{
        f"{family}{suffix}": (
            ("k0", "k1", "l", "gamma") if decay == "exponential" else ("k0", "k1", "l"),
            (),
            _cyclic(wave, decay, cycle, ahead),
        )
        for family, (wave, cycle, ahead) in _FAMILIES.items()
        for suffix, decay in zip(("", "2", "EXP"), get_args(Decay), strict=True)
    },
}
