"""A policy as a torch learning-rate scheduler: for plain loops, Fabric, Accelerate and the Hugging Face Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from lrbench_pl.policies import AdaptivePolicy, PerOptimizer, combined
from lrbench_pl.rates import RateDriver


class LRPolicyScheduler(LRScheduler):
    """Sets the learning rate of each parameter group to ``policy(step) * group.get("lr_scale", 1.0)``.

    Call :meth:`step` after each ``optimizer.step()``, as with torch's schedulers. It advances the policy by one if the
    optimizer has taken a step since the last call, and does nothing otherwise: a step that a ``GradScaler`` skipped,
    batches of gradient accumulation and the further calls of a scheduler that Accelerate prepared for several processes
    do not count. So the policy's clock is the number of optimizer steps. To look at a policy, call it; no optimizer is
    needed for that.

    The only state is the number of steps, so a resumed run has the rates of an unbroken one, and a run may be extended
    by another policy. A tensor rate is written in place. A group that is added later gets its rate before its first
    step. If anything else changes a rate, the optimizer's step fails with both values. The same holds for momentum and
    weight decay, if they have a policy.

    An adaptive policy is supported: report each checked value by :meth:`observe`. Its state is saved as well.

    Args:
        optimizer: The optimizer whose rates the policy sets.
        policy: Maps the number of optimizer steps taken, from 0, to a learning rate. An ``OptimizerPolicy`` sets more.
        last_epoch: Number of steps taken, less one: -1 for a new run, 99 to go on with the rate of step 100. The
            optimizer's groups need no ``initial_lr``.
        groups: Policies of single parameter groups, by the ``name`` of the group or its index, instead of ``policy``.
        momentum_policy: Policy of ``momentum``, or of the first of ``betas``; its values lie in [0, 1).
        weight_decay_policy: Policy of the weight decay. A group whose own weight decay is 0 beside others keeps it.

    Attributes:
        policy: All policies as one, an ``OptimizerPolicy`` if there are several.

    Raises:
        ValueError: If ``policy`` is not callable or ``last_epoch`` is not an integer of at least -1, or a further
            policy is not a plain one.
        LRPolicyError: If the parameter groups have different rates and no ``lr_scale``, a policy gives no valid value,
            or the optimizer has no such group or setting; at the optimizer's step, if something else changed a value.

    Example:
        >>> from lrbench_pl.policies import Polynomial
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scheduler = LRPolicyScheduler(optimizer, Polynomial(init_lr=0.1, decay_steps=4))
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.get_last_lr(), scheduler.state_dict()
        ([0.05], {'last_epoch': 2})
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Callable[[int], float],
        last_epoch: int = -1,
        *,
        groups: Mapping[str | int, Callable[[int], float]] | None = None,
        momentum_policy: Callable[[int], float] | None = None,
        weight_decay_policy: Callable[[int], float] | None = None,
    ) -> None:
        if not callable(policy):
            raise ValueError(f"policy must be callable: t -> learning rate, got {policy!r}")
        if isinstance(policy, PerOptimizer):
            raise ValueError("a scheduler drives one optimizer; give each optimizer its own LRPolicyScheduler")
        policy = combined(policy, momentum_policy, weight_decay_policy, groups)
        if isinstance(last_epoch, bool) or not isinstance(last_epoch, int) or last_epoch < -1:
            raise ValueError(f"last_epoch must be an integer of at least -1, got {last_epoch!r}")
        self.policy = policy
        self._adaptive = policy if isinstance(policy, AdaptivePolicy) else None
        if last_epoch == -1 and callable(reset := getattr(self._adaptive, "reset", None)):
            reset()  # a new run begins
        for group in getattr(optimizer, "param_groups", ()):  # torch asks for it when it resumes; a policy does not
            lr = group["lr"]
            group.setdefault("initial_lr", lr.clone() if isinstance(lr, torch.Tensor) else lr)
        super().__init__(optimizer, last_epoch)

    def _initial_step(self) -> None:
        """Set the first rate; torch calls this at the end of its constructor."""
        self.last_epoch += 1
        self._attach()

    def _attach(self) -> None:
        # Accelerate's wrapper has no hooks of its own
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self._driver = RateDriver(optimizer, self.policy, self.last_epoch, advances=False)
        self._counted = 0  # steps of the optimizer
        self._write()

    def _write(self) -> None:
        self._step_count = self.last_epoch + 1  # as torch counts its own calls
        self._driver.step = self.last_epoch
        self._driver.write()
        self._last_lr = self.get_lr()

    @property
    def is_adaptive(self) -> bool:
        """Whether the policy observes a metric."""
        return self._adaptive is not None

    def get_lr(self) -> list[Any]:
        """Return the rate of each parameter group for the coming step."""
        return self._driver.rates()

    def get_last_lr(self) -> list[Any]:
        """Return the rate of each parameter group for the coming step, also of groups added since."""
        return self._last_lr if len(self._last_lr) == len(self.optimizer.param_groups) else self.get_lr()

    def step(self, epoch: int | None = None) -> None:
        """Advance the policy by one if the optimizer has taken a step since the last call.

        Args:
            epoch: Number of steps taken, to go there instead.
        """
        if epoch is None and self._driver.taken == self._counted:
            return
        self._counted = self._driver.taken
        self.last_epoch = self.last_epoch + 1 if epoch is None else int(epoch)
        self._write()

    def observe(self, value: float) -> None:
        """Report the metric of a check to an adaptive policy; what it changes holds from the coming step.

        Raises:
            ValueError: If the policy is not adaptive.
        """
        if self._adaptive is None:
            raise ValueError(f"observe() needs an adaptive policy, got {self.policy!r}, which observes nothing")
        self._adaptive.observe(self.last_epoch, value)
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and, of an adaptive policy, its state; plain data without the policy itself."""
        state: dict[str, Any] = {"last_epoch": self.last_epoch}
        return state if self._adaptive is None else {**state, "policy": self._adaptive.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`: the rates are written at once.

        Raises:
            ValueError: If the state is that of another kind of scheduler or policy.
        """
        steps = state_dict.get("last_epoch")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"expected the state of an LRPolicyScheduler with last_epoch, got {sorted(state_dict)}")
        if (self._adaptive is None) == ("policy" in state_dict):
            kind = "without" if self._adaptive is None else "with"
            raise ValueError(
                f"expected a state {kind} that of an adaptive policy, for {self.policy!r}; give the scheduler the "
                "kind of policy that it was saved with"
            )
        if self._adaptive is not None:
            self._adaptive.load_state_dict(state_dict["policy"])
        self.last_epoch = steps
        self._counted = self._driver.taken
        self._driver.forget()
        self._write()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_driver"}

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, whose optimizer has no hooks
        self.__dict__.update(state)
        self._attach()
