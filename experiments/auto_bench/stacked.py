"""Many compositions beside each other: perceptrons of one case as stacked tensors, each following a plan of its own.

The planner of ``auto`` is a pure generator of segments. Here a small engine runs its segments for many seeds and
variants at once, about ten times as fast as one training after the other, so that a change of the rules is judged in
minutes. It follows the rules of ``LRPolicyComposer``; ``bench.py --real`` uses that itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrbench_pl.composing.divergence import LossWatch
from lrbench_pl.composing.segments import SegmentResult


@dataclass
class Job:
    """One training and where it stands."""

    plan: Generator[Any, Any, Any]
    order: Callable[[int], Tensor]
    segment: Any = None
    begun: int = 0  # steps spent when the segment began
    losses: list[float] = field(default_factory=list)
    diverged: bool = False
    watch: LossWatch = field(default_factory=LossWatch)
    position: int = 0
    spent: int = 0
    averaged_at: int = 0
    has_average: bool = False
    snapshots: dict[str, Any] = field(default_factory=dict)
    reached: int | None = None
    over: bool = False
    best: float | None = None
    peaks: list[float] = field(default_factory=list)
    trace: list[tuple[int, str, float]] = field(default_factory=list)


class Stack:
    """The weights of all jobs, their optimizer's state and the averages, with the job as the first dimension."""

    def __init__(self, models: Sequence[nn.Sequential], optimizer: str, settings: Mapping[str, Any]) -> None:
        layers = [[part for part in model if isinstance(part, nn.Linear)] for model in models]
        self.weights: list[Tensor] = []
        for parts in zip(*layers, strict=True):
            self.weights.append(torch.stack([part.weight.detach().T.clone() for part in parts]).requires_grad_())
            self.weights.append(
                torch.stack([part.bias.detach().clone() for part in parts]).unsqueeze(1).requires_grad_()
            )
        self.average = [weight.detach().clone() for weight in self.weights]
        self.first = [torch.zeros_like(weight) for weight in self.weights]
        self.second = [torch.zeros_like(weight) for weight in self.weights]
        self.steps = torch.zeros(len(models))
        self._optimizer, self._settings = optimizer, settings

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return the outputs [jobs, samples, classes] for inputs [jobs, samples, features]."""
        for index in range(0, len(weights), 2):
            x = torch.baddbmm(weights[index + 1], x, weights[index])
            if index + 2 < len(weights):
                x = x.relu()
        return x

    @torch.no_grad()
    def update(self, grads: Sequence[Tensor], rates: Tensor, live: Tensor) -> None:
        """Take a step with each job's rate; jobs that are not live stay as they are."""
        lr = torch.where(live, rates, 0.0).view(-1, 1, 1)
        on = live.view(-1, 1, 1)
        self.steps += live
        n = self.steps.view(-1, 1, 1).clamp(min=1)
        momentum, nesterov = self._settings.get("momentum", 0.0), self._settings.get("nesterov", False)
        decay = self._settings.get("weight_decay", 0.0)
        for p, g, m, v in zip(self.weights, grads, self.first, self.second, strict=True):
            if self._optimizer in ("sgd", "momentum", "nesterov"):
                if momentum:
                    m.copy_(torch.where(on, momentum * m + g, m))
                    g = g + momentum * m if nesterov else m
                p -= torch.where(on, lr * g, 0.0)
            elif self._optimizer == "rmsprop":
                v.copy_(torch.where(on, 0.99 * v + 0.01 * g * g, v))
                p -= torch.where(on, lr * g / (v.sqrt() + 1e-8), 0.0)
            else:
                if decay:
                    p *= 1 - torch.where(on, lr * decay, 0.0)
                m.copy_(torch.where(on, 0.9 * m + 0.1 * g, m))
                v.copy_(torch.where(on, 0.999 * v + 0.001 * g * g, v))
                scale = m / (1 - 0.9**n) / ((v / (1 - 0.999**n)).sqrt() + 1e-8)
                p -= torch.where(on, lr * scale, 0.0)

    @torch.no_grad()
    def take(self, j: int) -> list[Tensor]:
        """Return the state of a job."""
        return [t[j].clone() for t in (*self.weights, *self.first, *self.second, self.steps)]

    @torch.no_grad()
    def put(self, j: int, state: Sequence[Tensor]) -> None:
        """Set the state of a job."""
        for t, kept in zip((*self.weights, *self.first, *self.second, self.steps), state, strict=True):
            t[j] = kept


def train(
    x: Tensor,
    y: Tensor,
    parts: Sequence[tuple[Tensor, Tensor]],
    models: Sequence[nn.Sequential],
    plans: Sequence[Generator[Any, Any, Any]],
    seeds: Sequence[int],
    batch: int,
    budget: int,
    interval: int,
    optimizer: str,
    settings: Mapping[str, Any],
    targets: Sequence[float | None],
    share: float,
    accepts: Sequence[bool] = (),
) -> list[Job]:
    """Run every plan to its end.

    Args:
        x: Inputs [samples, features]; the parts index them.
        y: Labels or numbers.
        parts: Indices of the training and of the validation samples of each job.
        models: The network of each, at its start.
        plans: Generators of segments.
        seeds: Of the order of the batches.
        batch: Samples of a step.
        budget: Steps in all.
        interval: Steps between checks.
        optimizer: Its name.
        settings: Its arguments.
        targets: Of each job; None for none.
        share: Window of the averaged weights.
        accepts: Whether a check of the averaged weights may reach the target, for each job; by default for none.
    """
    classes = not y.is_floating_point()
    stack = Stack(models, optimizer, settings)
    jobs = []
    for plan, (kept, _), seed in zip(plans, parts, seeds, strict=True):
        jobs.append(Job(plan, _order(kept, min(batch, len(kept)), seed)))
    held_x = torch.stack([x[held] for _, held in parts])
    held_y = torch.stack([y[held] for _, held in parts])

    def value(weights: Sequence[Tensor]) -> list[float]:
        with torch.no_grad():
            out = stack.forward(held_x, weights)
            if classes:
                return (out.argmax(2) == held_y).double().mean(1).tolist()
            return ((out.squeeze(2) - held_y) ** 2).mean(1).tolist()

    def meets(found: float, target: float | None) -> bool:
        if target is None or not math.isfinite(found):
            return False
        return float(f"{found:.7g}") >= target if classes else float(f"{found:.7g}") <= target

    def follow(j: int, outcome: Any) -> None:
        job = jobs[j]
        while True:
            try:
                segment = job.plan.send(outcome)
            except (StopIteration, ValueError):
                job.over = True
                return
            if segment.restore is not None:
                state, job.position = job.snapshots[segment.restore]
                stack.put(j, state)
                has_gone_back = job.diverged or segment.restore == "start"
                if has_gone_back or job.averaged_at > segment.start:
                    job.has_average = False
                if has_gone_back:
                    job.watch.reset()
                job.position += segment.skip
            if segment.steps:
                job.segment, job.begun, job.losses, job.diverged = segment, job.spent, [], False
                return
            if segment.save is not None:
                job.snapshots[segment.save] = (stack.take(j), job.position)
            outcome = SegmentResult(0, spent=job.spent)

    def end(j: int, found: float, done: int) -> None:
        job = jobs[j]
        segment = job.segment
        job.trace.append((job.spent, segment.kind + ("~" if segment.averaged else ""), found))
        if segment.save is not None and not job.diverged:
            job.snapshots[segment.save] = (stack.take(j), job.position)
        losses = tuple(job.losses) if segment.kind == "range" else ()
        learned, memorised = job.watch.has_learned, job.watch.has_memorised
        follow(j, SegmentResult(done, found, job.diverged, losses, job.spent, learned, memorised))

    for j in range(len(jobs)):
        follow(j, None)
    while any(not job.over for job in jobs):
        live = torch.tensor([not job.over for job in jobs])
        index = torch.stack([job.order(job.position) for job in jobs])
        rates = [0.0 if job.over else job.segment.policy(job.segment.start + job.spent - job.begun) for job in jobs]
        out = stack.forward(x[index], stack.weights)
        if classes:
            losses = functional.cross_entropy(out.transpose(1, 2), y[index], reduction="none").mean(1)
        else:
            losses = ((out.squeeze(2) - y[index]) ** 2).mean(1)
        grads = torch.autograd.grad(losses.sum(), stack.weights)
        stack.update(grads, torch.tensor(rates), live)
        numbers = losses.tolist()
        pull = torch.zeros(len(jobs))
        due = [False] * len(jobs)
        for j, job in enumerate(jobs):
            if job.over:
                continue
            job.position += 1
            job.spent += 1
            segment, done = job.segment, job.spent - job.begun
            if segment.kind == "range":
                job.losses.append(numbers[j])
            else:
                job.diverged |= job.watch.update(numbers[j])
                t = segment.start + done
                window = share * t
                if not job.has_average:
                    pull[j], job.has_average, job.averaged_at = 1.0, True, t
                elif t - job.averaged_at >= window / 50:
                    pull[j] = min(1.0, (t - job.averaged_at) / max(window, 1.0))
                    job.averaged_at = t
            due[j] = job.spent % interval == 0
        with torch.no_grad():
            for mean, weight in zip(stack.average, stack.weights, strict=True):
                mean.lerp_(weight, pull.view(-1, 1, 1).expand_as(mean))
        if any(due):
            plain, averaged = value(stack.weights), value(stack.average)
        for j, job in enumerate(jobs):
            if job.over:
                continue
            segment, done = job.segment, job.spent - job.begun
            if segment.kind == "range":
                if done >= segment.steps:
                    end(j, math.nan, done)
            elif due[j]:
                shown = segment.averaged and done >= segment.steps
                found = averaged[j] if shown else plain[j]
                counts = not shown or (bool(accepts) and accepts[j])
                if counts and math.isfinite(found):
                    job.best = found if job.best is None else (max if classes else min)(job.best, found)
                if counts and not job.diverged and meets(found, targets[j]):
                    job.trace.append((job.spent, "reached", found))
                    job.reached, job.over = job.spent, True
                elif done >= segment.steps or job.diverged:
                    end(j, found, done)
            if job.spent >= budget:
                job.over = True
    return jobs


def _order(kept: Tensor, size: int, seed: int) -> Callable[[int], Tensor]:
    per_epoch = len(kept) // size
    orders: dict[int, Tensor] = {}

    def at(position: int) -> Tensor:
        epoch, number = divmod(position, per_epoch)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(1000 * seed + epoch)
            orders[epoch] = kept[torch.randperm(len(kept), generator=generator)]
        return orders[epoch][number * size : (number + 1) * size]

    return at
