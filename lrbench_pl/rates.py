"""Write a policy's values into an optimizer's parameter groups and verify that they stay."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from lrbench_pl.policies import RANGES, AdaptiveOptimizerPolicy, OptimizerPolicy

# Between two steps of a training, caches are cold: 32 values in one go cost less than 8 one by one.
_AHEAD = 32


class LRPolicyError(RuntimeError):
    """A training whose rates are not those of the policy; the message says what to change."""


class RateDriver:
    """Keeps the rates of one optimizer at ``policy(step) * lr_scale`` from attaching until :meth:`detach`.

    An ``OptimizerPolicy`` also sets momentum, weight decay and the rates of single groups, in the same way. Before each
    step of the optimizer, groups that are new or were replaced by ``load_state_dict`` get their values. If anything
    else changed a value, the step fails. The optimizer keeps no reference: a driver that nobody holds is gone.

    Args:
        optimizer: A ``torch.optim.Optimizer``.
        policy: Maps a step to a learning rate.
        step: The step whose rate is due.
        advances: Whether each step of the optimizer advances ``step``.
        on_write: Called with the driver after it has written the values of a step.

    Attributes:
        step: The step whose rate is due.
        taken: Steps that the optimizer took since; those that a ``GradScaler`` skipped are none.

    Raises:
        LRPolicyError: If the steps of the optimizer cannot be counted, its groups have different rates and no
            ``lr_scale``, it has no such setting, or a group that the policy names.
    """

    def __init__(
        self,
        optimizer: Any,
        policy: Callable[[int], float],
        step: int = 0,
        advances: bool = True,
        on_write: Callable[[RateDriver], None] | None = None,
    ) -> None:
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise LRPolicyError(
                f"the steps of {type(optimizer).__name__} cannot be counted: it is not a torch.optim.Optimizer, or "
                "does not call super().__init__()"
            )
        self._lr, *self._others = settings = _settings(optimizer, policy)
        for setting in settings:
            setting.prepare(optimizer.param_groups)
        self._settings = tuple(settings)
        self.optimizer = optimizer
        self.step = step
        self.taken = 0
        self._advances = advances
        self._on_write = on_write
        self._is_stepping = False
        self._has_one = not self._others
        self.forget()
        driver, optimizer_fields = weakref.ref(self), optimizer.__dict__

        # Both run at every step: the usual case, one group with its rate as it was written, takes no further call.
        def before(*_: Any) -> None:
            if (alive := driver()) is None:
                return
            if not (alive._written_for == alive.step and alive._is_untouched()):
                alive._before_step()
            alive._is_stepping = True

        def after(*_: Any) -> None:
            if (alive := driver()) is None or not alive._is_stepping:  # a step within a step was this one
                return
            alive._is_stepping = False
            if not alive._is_untouched():
                alive._verify()
            skipped = optimizer_fields.get("found_inf")  # a GradScaler leaves it to a fused optimizer to skip
            if skipped is None or not float(skipped):
                alive.taken += 1
                alive.step += alive._advances

        self._handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def detach(self) -> None:
        """Leave the optimizer alone from now on."""
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        """Forget what was written, so that the values are written again."""
        self._written_for = -1  # the step; -1: none
        self._groups: list[dict[str, Any]] = []
        for setting in self._settings:
            setting.written = []

    def write_if_due(self) -> None:
        """Write the values unless they were written for this step already."""
        if self._written_for != self.step or len(self._lr.written) != len(self.optimizer.param_groups):
            self.write()

    def write(self) -> None:
        """Write the values of :attr:`step` into every group, in place where they are tensors."""
        groups, step = self.optimizer.param_groups, self.step
        known = len(self._groups)
        if len(groups) > known > 0:
            for setting in self._settings:
                setting.admit(groups[known:], groups[:known], self.optimizer.defaults, step)
        self._written_for, self._groups = step, [*groups]
        self._lr.write(groups, step)
        for setting in self._others:
            setting.write(groups, step)
        if self._on_write is not None:
            self._on_write(self)

    def values(self) -> dict[str, float]:
        """Return the values of :attr:`step` by the names of ``settings_of``, without the scales of groups."""
        return {name: values.at(self.step) for setting in self._settings for name, values in setting.named.items()}

    def rates(self) -> list[float]:
        """Return the rate of each group at :attr:`step`."""
        return self._lr.scaled(self.optimizer.param_groups, self.step)

    def _is_untouched(self) -> bool:
        """Return whether there is one group, and its rate is the very object that was written."""
        groups, written = self.optimizer.param_groups, self._lr.written
        return self._has_one and len(groups) == len(written) == 1 and groups[0]["lr"] is written[0]

    def _before_step(self) -> None:
        self._verify()
        self.write_if_due()

    def _verify(self) -> None:
        """Fail if anything else changed a value since it was written."""
        for setting in self._settings:
            if not setting.is_as_written(self.optimizer.param_groups, self._groups, self._written_for):
                self.forget()  # load_state_dict replaced the groups
                return


class _InTensor(NamedTuple):
    """A value that was written into a tensor in place."""

    tensor: torch.Tensor
    version: int
    value: float


class _Kind(NamedTuple):
    """Names of a setting in messages, and the bound that its values may not reach."""

    noun: str
    plural: str
    share_of: str
    below: float = math.inf

    @property
    def rule(self) -> str:
        return "a finite number of at least 0" if self.below == math.inf else f"a number in [0, {self.below:g})"


_RATE = _Kind("learning rate", "learning rates", "rate")
_KINDS = {
    "momentum": _Kind("momentum", "values of momentum", "momentum", RANGES["momentum"][0]),
    "weight_decay": _Kind("weight decay", "weight decays", "weight decay", RANGES["weight_decay"][0]),
}


class _Values:
    """The values of one policy; those of a frozen one are read ahead.

    Args:
        policy: Maps a step to a value.
        kind: Of the value.
    """

    def __init__(self, policy: Callable[[int], float], kind: _Kind) -> None:
        self._policy, self._kind, self._below = policy, kind, kind.below
        self._reads_ahead = is_value(policy)
        self._ahead: list[Any] = []  # the values from step _ahead_of on
        self._ahead_of = 0

    def at(self, step: int) -> float:
        """Return the value of a step."""
        index = step - self._ahead_of
        value = self._ahead[index] if 0 <= index < len(self._ahead) else None
        if type(value) is float and 0 <= value < self._below:
            return value
        if self._reads_ahead:
            try:
                self._ahead, self._ahead_of = [self._policy(t) for t in range(step, step + _AHEAD)], step
            except Exception:  # it may have no value beyond its end
                self._ahead, self._reads_ahead = [], False
        return _value_of(self._policy, step, self._kind)


class _Setting:
    """One setting of all groups of an optimizer.

    Args:
        name: Its name, under which it is logged.
        kind: Of its values.
        policy: Its policy.
        own: Policies of single groups, by index: the key that names the group, and the policy.
    """

    def __init__(
        self,
        name: str,
        kind: _Kind,
        policy: Callable[[int], float],
        own: Mapping[int, tuple[str | int, Callable[[int], float]]] | None = None,
    ) -> None:
        self.kind = kind
        self.key, self._scale = name, f"{name}_scale"
        self._values = _Values(policy, kind)
        self._own = {index: _Values(each, kind) for index, (_, each) in (own or {}).items()}
        names = {index: f"{name}/{key}" for index, (key, _) in (own or {}).items()}
        self.named = {name: self._values, **{names[index]: values for index, values in self._own.items()}}
        self.written: list[Any] = []  # what was put into each group, to compare

    # -- groups of different values -------------------------------------------------------------------------------

    def prepare(self, groups: Sequence[dict[str, Any]]) -> None:
        """Refuse groups whose values differ, if nothing tells what the policy should make of that."""
        values = [
            self._number(group)
            for index, group in enumerate(groups)
            if self._scale not in group and index not in self._own
        ]
        if any(not _is_same(value, values[0]) for value in values):
            shown, share = ", ".join(f"{value:g}" for value in values), min(values) / max(values)
            raise LRPolicyError(
                f"the parameter groups have different {self.kind.plural} ({shown}), but the policy sets them all; give "
                f"each group its share of the policy's {self.kind.share_of}, such as "
                f"{{'params': ..., '{self._scale}': {share:g}}}"
            )

    def admit(
        self,
        added: Sequence[dict[str, Any]],
        known: Sequence[Mapping[str, Any]],
        defaults: Mapping[str, Any],
        step: int,
    ) -> None:
        """Refuse groups that were added with a value of their own, which the policy would overwrite."""
        usual = [self._number(defaults) if self.key in defaults else math.nan]
        usual += [
            self._number(group)
            for index, group in enumerate(known)
            if self._scale not in group and index not in self._own
        ]
        for group in added:
            value = self._number(group)
            if self._scale not in group and not any(_is_same(value, each) for each in usual):
                raise LRPolicyError(
                    f"a parameter group added before step {step} has a {self.kind.noun} of its own ({value:g}), but "
                    f"the policy sets them all; add it with its share of the policy's {self.kind.share_of} as "
                    f"{self._scale} instead"
                )

    # -- writing and verifying ------------------------------------------------------------------------------------

    def write(self, groups: Sequence[dict[str, Any]], step: int) -> None:
        """Write the value of a step into every group."""
        key, scale, value = self.key, self._scale, self._values.at(step)
        own = self._own
        written: list[Any] = []
        self.written = written
        for group in groups:
            of_group = own[len(written)].at(step) if own and len(written) in own else value
            scaled = of_group * group[scale] if scale in group else of_group
            if type(group[key]) is float:
                group[key] = scaled
                written.append(scaled)
            else:
                written.append(self._fill(group, scaled))

    def scaled(self, groups: Sequence[Mapping[str, Any]], step: int) -> list[float]:
        """Return the value of each group."""
        values = (self._own.get(index, self._values).at(step) for index in range(len(groups)))
        return [value * group.get(self._scale, 1.0) for value, group in zip(values, groups, strict=True)]

    def _fill(self, group: dict[str, Any], scaled: float) -> Any:
        """Set a value in place if it is a tensor: capturable and compiled optimizers read it there."""
        tensor = group[self.key]
        if not isinstance(tensor, torch.Tensor):
            group[self.key] = scaled
            return scaled
        group[self.key] = tensor = self._unshared(tensor)
        tensor.fill_(scaled)
        return _InTensor(tensor, tensor._version, scaled)

    def _unshared(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor that no group before has: torch puts one into every group."""
        is_shared = any(each.tensor is tensor for each in self.written if type(each) is _InTensor)
        return tensor.clone() if is_shared else tensor

    def is_as_written(self, groups: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]], step: int) -> bool:
        """Fail if anything else changed a value; return False if the groups were replaced."""
        key = self.key
        for group, written in zip(groups, self.written):  # noqa: B905  (called twice a step)
            if group[key] is written or self._holds(group, written):
                continue
            if any(each is not before for each, before in zip(groups, known, strict=False)):
                return False
            raise LRPolicyError(
                f"the policy set the {self.kind.noun} of step {step} to {_written_value(written):g}, but the optimizer "
                f"found {self._number(group):g}: something else sets it too, such as optimizer_step(), a scheduler or "
                "a callback; remove one of the two"
            )
        return True

    def _holds(self, group: Mapping[str, Any], written: Any) -> bool:
        """Return whether a group has the value that was written, maybe as another object."""
        if type(written) is _InTensor:
            tensor, version, _ = written
            if self._held(group) is tensor and tensor._version == version:
                return True
        return _is_same(self._number(group), _written_value(written))

    def _held(self, group: Mapping[str, Any]) -> Any:
        """Return the object in a group that is the value."""
        return group[self.key]

    def _number(self, group: Mapping[str, Any]) -> float:
        held = self._held(group)
        return math.nan if held is None else float(held)


class _OtherSetting(_Setting):
    """A setting beside the rate, which stays 0 in a group where it is 0, unless it is 0 in all groups.

    Such a group gets the scale 0, which the optimizer's state keeps as it keeps torch's ``initial_lr``.
    """

    def prepare(self, groups: Sequence[dict[str, Any]]) -> None:
        """Check the scales, and exempt groups whose value is 0 beside others."""
        most = 1.0 if self.kind.below == 1 else math.inf
        for group in groups:
            scale = group.get(self._scale, 1.0)
            is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale)
            if not (is_number and 0 <= scale <= most):
                rule = "a number in [0, 1]" if most == 1 else "a finite number of at least 0"
                raise LRPolicyError(f"{self._scale} of a parameter group must be {rule}, got {scale!r}")
        self._exempt(groups, any(self._number(group) for group in groups if self._scale not in group))
        super().prepare(groups)

    def admit(
        self,
        added: Sequence[dict[str, Any]],
        known: Sequence[Mapping[str, Any]],
        defaults: Mapping[str, Any],
        step: int,
    ) -> None:
        """Exempt groups that were added with the value 0 beside others, and refuse those with values of their own."""
        usual = self._number(defaults) if self.key in defaults else 0.0
        self._exempt(added, bool(usual) or any(group.get(self._scale) == 0 for group in known))
        super().admit(added, known, defaults, step)

    def _exempt(self, groups: Sequence[dict[str, Any]], is_used: bool) -> None:
        for group in groups:
            if is_used and not self._number(group):
                group.setdefault(self._scale, 0.0)


class _FirstBeta(_OtherSetting):
    """The first of the ``betas`` of Adam-family optimizers, which is their momentum."""

    def __init__(self, name: str, kind: _Kind, policy: Callable[[int], float]) -> None:
        super().__init__(name, kind, policy)
        self.key = "betas"

    def _fill(self, group: dict[str, Any], scaled: float) -> Any:
        first, *others = group["betas"]
        if not isinstance(first, torch.Tensor):
            group["betas"] = betas = (scaled, *others)
            return betas
        tensor = self._unshared(first)
        group["betas"] = (tensor, *others)
        tensor.fill_(scaled)
        return _InTensor(tensor, tensor._version, scaled)

    def _held(self, group: Mapping[str, Any]) -> Any:
        return group["betas"][0]


def _written_value(written: Any) -> float:
    if type(written) is _InTensor:
        return written.value
    return float(written[0] if isinstance(written, tuple) else written)


def _settings(optimizer: Any, policy: Callable[[int], float]) -> list[_Setting]:
    """Return the settings of an optimizer that a policy sets, the learning rate first."""
    if not isinstance(policy, (OptimizerPolicy, AdaptiveOptimizerPolicy)):
        return [_Setting("lr", _RATE, policy)]
    groups = optimizer.param_groups
    own = {_index_of(each.group, groups): (each.group, each.lr) for each in policy.groups}
    if len(own) < len(policy.groups):
        raise LRPolicyError(f"groups name a parameter group twice, by name and by index: {_known(groups)}")
    found = [_Setting("lr", _RATE, policy.lr, own)]
    if policy.momentum is not None:
        key = next((key for key in ("betas", "momentum") if all(key in group for group in groups)), None)
        if key is None:
            raise _no_setting(optimizer, "momentum", "neither momentum nor betas")
        kind: type[_OtherSetting] = _FirstBeta if key == "betas" else _OtherSetting
        found.append(kind("momentum", _KINDS["momentum"], policy.momentum))
    if policy.weight_decay is not None:
        if not all("weight_decay" in group for group in groups):
            raise _no_setting(optimizer, "weight_decay", "no weight_decay")
        found.append(_OtherSetting("weight_decay", _KINDS["weight_decay"], policy.weight_decay))
    return found


def _no_setting(optimizer: Any, name: str, has: str) -> LRPolicyError:
    return LRPolicyError(
        f"{name}_policy needs an optimizer with this setting, but {type(optimizer).__name__} has {has}; leave it out"
    )


def _index_of(key: str | int, groups: Sequence[Mapping[str, Any]]) -> int:
    """Return the index of the parameter group that a policy names."""
    found = [index for index, group in enumerate(groups) if key in (index, group.get("name"))]
    if len(found) != 1:
        what = "several parameter groups have" if found else "no parameter group has"
        raise LRPolicyError(f"{what} the name or index {key!r} that a policy is for; there are {_known(groups)}")
    return found[0]


def _known(groups: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{index} ({group['name']!r})" if "name" in group else f"{index}" for index, group in enumerate(groups)
    )


def is_value(policy: Any) -> bool:
    """Return whether a policy is a frozen dataclass, whose rates depend on the step alone."""
    parameters = getattr(type(policy), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen and not hasattr(policy, "observe")


def _value_of(policy: Callable[[int], float], step: int, kind: _Kind) -> float:
    """Return a policy's value of a step.

    Raises:
        LRPolicyError: If it is out of its range.
    """
    given = policy(step)
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if 0 <= value < kind.below:
        return value
    raise LRPolicyError(f"the policy gave {given!r} as the {kind.noun} of step {step}; expected {kind.rule}")


def _is_same(value: float, other: float) -> bool:
    """Return whether two values are one, up to the precision of float32 tensors."""
    return math.isclose(value, other, rel_tol=1e-6) or (math.isnan(value) and math.isnan(other))
