"""Write a policy's rates into an optimizer's parameter groups and verify that they stay."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

# Between two steps of a training, caches are cold: 32 values in one go cost less than 8 one by one.
_AHEAD = 32


class LRPolicyError(RuntimeError):
    """A training whose rates are not those of the policy; the message says what to change."""


class RateDriver:
    """Keeps the rates of one optimizer at ``policy(step) * lr_scale`` from attaching until :meth:`detach`.

    Before each step of the optimizer, groups that are new or were replaced by ``load_state_dict`` get their rate. If
    anything else changed a rate, the step fails. The optimizer keeps no reference: a driver that nobody holds is gone.

    Args:
        optimizer: A ``torch.optim.Optimizer``.
        policy: Maps a step to a learning rate.
        step: The step whose rate is due.
        advances: Whether each step of the optimizer advances ``step``.
        on_write: Called with the step and its rate after it was written.

    Attributes:
        step: The step whose rate is due.
        taken: Steps that the optimizer took since; those that a ``GradScaler`` skipped are none.

    Raises:
        LRPolicyError: If the steps of the optimizer cannot be counted, or its groups have different rates and no
            ``lr_scale``.
    """

    def __init__(
        self,
        optimizer: Any,
        policy: Callable[[int], float],
        step: int = 0,
        advances: bool = True,
        on_write: Callable[[int, float], None] | None = None,
    ) -> None:
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise LRPolicyError(
                f"the steps of {type(optimizer).__name__} cannot be counted: it is not a torch.optim.Optimizer, or "
                "does not call super().__init__()"
            )
        _require_equal(optimizer.param_groups)
        self.optimizer = optimizer
        self.policy = policy
        self.step = step
        self.taken = 0
        self._advances = advances
        self._on_write = on_write
        self._is_stepping = False
        self._reads_ahead = is_value(policy)
        self._ahead: list[Any] = []  # the policy's values from step _ahead_of on
        self._ahead_of = 0
        self.forget()
        driver, optimizer_fields = weakref.ref(self), optimizer.__dict__

        # Both run at every step: the usual case, one group as it was written, takes no further call.
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
        """Forget what was written, so that the rate is written again."""
        self._written_for = -1  # the step; -1: none
        self._groups: list[dict[str, Any]] = []
        self._written: list[Any] = []  # the rate of each of these groups

    def write_if_due(self) -> None:
        """Write the rate unless it was written for this step already."""
        if self._written_for != self.step or len(self._written) != len(self.optimizer.param_groups):
            self.write()

    def write(self) -> None:
        """Write the rate of :attr:`step` into every group, in place where it is a tensor."""
        groups, step = self.optimizer.param_groups, self.step
        index = step - self._ahead_of
        lr = self._ahead[index] if 0 <= index < len(self._ahead) else None
        if not (type(lr) is float and 0 <= lr < math.inf):
            lr = self._rate(step)
        if len(groups) > len(self._written) > 0:
            self._refuse_own_rates(groups[len(self._written) :])
        self._written_for, self._groups, self._written = step, [*groups], (written := [])
        for group in groups:
            scaled = lr * group["lr_scale"] if "lr_scale" in group else lr
            if type(group["lr"]) is float:
                group["lr"] = scaled
                written.append(scaled)
            else:
                written.append(self._fill(group, scaled))
        if self._on_write is not None:
            self._on_write(step, lr)

    def _rate(self, step: int) -> float:
        """Return the rate of a step, and read those of the next steps of a policy that is a value."""
        if self._reads_ahead:
            try:
                self._ahead, self._ahead_of = [self.policy(t) for t in range(step, step + _AHEAD)], step
            except Exception:  # it may have no value beyond its end
                self._ahead, self._reads_ahead = [], False
        return rate_of(self.policy, step)

    def _fill(self, group: dict[str, Any], scaled: float) -> Any:
        """Set a rate in place if it is a tensor: capturable and compiled optimizers read it there."""
        tensor = group["lr"]
        if not isinstance(tensor, torch.Tensor):
            group["lr"] = scaled
            return scaled
        if any(each[0] is tensor for each in self._written if type(each) is tuple):  # torch puts one into every group
            group["lr"] = tensor = tensor.clone()
        tensor.fill_(scaled)
        return tensor, tensor._version, scaled

    def _refuse_own_rates(self, added: Sequence[Mapping[str, Any]]) -> None:
        """Refuse groups that were added with a rate of their own, which the policy would overwrite."""
        groups = self.optimizer.param_groups[: -len(added)]
        usual = [_number(self.optimizer.defaults.get("lr"))]
        usual += [_number(group["lr"]) for group in groups if "lr_scale" not in group]
        for group in added:
            rate = _number(group["lr"])
            if "lr_scale" not in group and not any(_is_same(rate, each) for each in usual):
                raise LRPolicyError(
                    f"a parameter group added before step {self.step} has a learning rate of its own ({rate:g}), but "
                    "the policy sets them all; add it with its share of the policy's rate as lr_scale instead"
                )

    def _is_untouched(self) -> bool:
        """Return whether there is one group, and its rate is the very object that was written."""
        groups, written = self.optimizer.param_groups, self._written
        return len(groups) == len(written) == 1 and groups[0]["lr"] is written[0]

    def _before_step(self) -> None:
        self._verify()
        self.write_if_due()

    def _verify(self) -> None:
        """Fail if anything else changed a rate since it was written."""
        for group, written in zip(self.optimizer.param_groups, self._written):  # noqa: B905  (called twice a step)
            if group["lr"] is not written:
                self._compare(group["lr"], written)
                if not self._written:
                    return

    def _compare(self, lr: Any, written: Any) -> None:
        expected = written
        if type(written) is tuple:
            tensor, version, expected = written
            if lr is tensor and lr._version == version:
                return
        if _is_same(_number(lr), expected):
            return
        groups = self.optimizer.param_groups
        if any(group is not known for group, known in zip(groups, self._groups, strict=False)):
            self.forget()  # load_state_dict replaced them
            return
        raise LRPolicyError(
            f"the policy set the learning rate of step {self._written_for} to {expected:g}, but the optimizer found "
            f"{_number(lr):g}: something else sets it too, such as optimizer_step(), a scheduler or a callback; "
            "remove one of the two"
        )


def is_value(policy: Any) -> bool:
    """Return whether a policy is a frozen dataclass, whose rates depend on the step alone."""
    parameters = getattr(type(policy), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen and not hasattr(policy, "observe")


def rate_of(policy: Callable[[int], float], step: int) -> float:
    """Return the policy's rate of a step.

    Raises:
        LRPolicyError: If it is not a finite number of at least 0.

    Example:
        >>> rate_of(lambda step: 0.1 / (1 + step), 1)
        0.05
    """
    given = policy(step)
    try:
        lr = float(given)
    except (TypeError, ValueError):
        lr = math.nan
    if 0 <= lr < math.inf:
        return lr
    raise LRPolicyError(
        f"the policy gave {given!r} as the learning rate of step {step}; expected a finite number of at least 0"
    )


def _require_equal(groups: Sequence[Mapping[str, Any]]) -> None:
    rates = [_number(group["lr"]) for group in groups if "lr_scale" not in group]
    if any(not _is_same(rate, rates[0]) for rate in rates):
        shown = ", ".join(f"{rate:g}" for rate in rates)
        share = min(rates) / max(rates)
        raise LRPolicyError(
            f"the parameter groups have different learning rates ({shown}), but the policy sets them all; give "
            f"each group its share of the policy's rate, such as {{'params': ..., 'lr_scale': {share:g}}}"
        )


def _number(lr: Any) -> float:
    return math.nan if lr is None else float(lr)


def _is_same(rate: float, other: float) -> bool:
    """Return whether two rates are one, up to the precision of float32 tensors."""
    return math.isclose(rate, other, rel_tol=1e-6) or (math.isnan(rate) and math.isnan(other))
