"""The engine that runs the serial kernels of all replicas on parallel streams, captured in one CUDA graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lrbench_pl.sweeps.fused.program import Program, aside, recorded, side_stream

# Streams on which replicas run beside each other. Those of one stream share its memory for activations.
_STREAMS = 16


class CapturedEngine(Program):
    """Trains replicas side by side, each with the kernels of a training of its own.

    On CUDA the replicas are spread over parallel streams, and a step is one CUDA graph. On the CPU they compute one
    after the other.
    """

    name = "captured"

    def _bind(self) -> None:
        self._models: list[nn.Module] = []
        self._own: list[list[nn.Parameter]] = []
        self._gradient_views = [self._layout.of_row(row) for row in self._gradients]
        for row, replica in enumerate(self._rows):
            model = copy.deepcopy(self._replicas[replica].module.model).to(self._device)
            parameters = dict(model.named_parameters())
            for name, view in zip(self._layout.names, self._layout.of_row(self._parameters[row]), strict=True):
                parameters[name].data = view
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
                if name in self._buffers:
                    tensor.data = self._buffers[name][row]
            self._models.append(model)
            self._own.append([parameters[name] for name in self._layout.names])
        count = min(_STREAMS, len(self._rows)) if self._device.type == "cuda" else 0
        self._side_streams = [side_stream(self._device, 1 + number) for number in range(count)]
        self._evaluations: dict[tuple[object, ...], _Evaluation | None] = {}

    def _compute_gradients(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        main = torch.cuda.current_stream(self._device) if self._side_streams else None
        for side in self._side_streams:
            side.wait_stream(main)  # type: ignore[arg-type]
        try:
            for row, replica in enumerate(self._rows):
                with self._on_stream(row), self._own_random_numbers(row):
                    inputs, target = batches[self._replicas[replica].stream]
                    with self._precision():
                        loss = self._objective.loss(self._models[row](inputs), target)
                    gradients = torch.autograd.grad(loss, self._own[row])
                    with torch.no_grad():
                        torch._foreach_copy_(self._gradient_views[row], gradients)
                        self._losses[row].copy_(loss)
                    del loss, gradients
        finally:  # a capture cannot end, nor free its memory, while streams are not joined
            for side in self._side_streams:
                main.wait_stream(side)  # type: ignore[union-attr]

    def _on_stream(self, row: int) -> contextlib.AbstractContextManager[object]:
        if not self._side_streams:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._side_streams[row % len(self._side_streams)])

    @contextlib.contextmanager
    def _own_random_numbers(self, row: int) -> Iterator[None]:
        """Let torch's default generator continue the random numbers of one replica."""
        if not self._random:
            yield
            return
        own = self._random[row]
        if self._device.type == "cuda":
            default = torch.cuda.default_generators[self._device.index or 0]
            before = default.graphsafe_get_state()
            default.graphsafe_set_state(own)
            try:
                yield
            finally:
                default.graphsafe_set_state(before)
            return
        state = torch.get_rng_state()
        torch.set_rng_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(torch.get_rng_state())
            torch.set_rng_state(state)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(part, part.training) for model in self._models for part in model.modules()]
        for model in self._models:
            model.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode

    def _evaluate_batch(self, replicas: Sequence[int], inputs: Tensor, target: Tensor) -> Tensor:
        if self._device.type == "cpu":
            return self._sums_of_rows([self._rows.index(replica) for replica in replicas], inputs, target)
        # Also rows that are masked, so that one graph serves until the rows move together.
        streams = {self._replicas[replica].stream for replica in replicas}
        rows = [row for row, replica in enumerate(self._rows) if self._replicas[replica].stream in streams]
        key = (*rows, inputs.shape, inputs.dtype, target.shape)
        if key not in self._evaluations:  # the first time warms up the libraries
            self._evaluations[key] = None
            with aside(self._device):
                found = self._sums_of_rows(rows, inputs, target)
        else:
            evaluation = self._evaluations[key] or _Evaluation(self, rows, inputs, target)
            self._evaluations[key] = evaluation
            found = evaluation(inputs, target)
        return found[[rows.index(self._rows.index(replica)) for replica in replicas]]

    def _sums_of_rows(self, rows: Sequence[int], inputs: Tensor, target: Tensor) -> Tensor:
        found = []
        for row in rows:
            with self._precision():
                found.append(self._objective.sums(self._models[row](inputs), target))
        return torch.stack(found)


class _Evaluation:
    """The evaluation of some rows on a batch of one shape, captured in a CUDA graph.

    Args:
        engine: The engine, in evaluation mode.
        rows: The rows.
        inputs: A batch of the shape.
        target: Its target.
    """

    def __init__(self, engine: CapturedEngine, rows: Sequence[int], inputs: Tensor, target: Tensor) -> None:
        self._inputs, self._target = inputs.clone(), target.clone()
        with recorded(engine._device) as self._graph:
            self._sums = engine._sums_of_rows(rows, self._inputs, self._target)

    def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the sums of each row over another batch."""
        self._inputs.copy_(inputs)
        self._target.copy_(target)
        self._graph.replay()
        return self._sums.clone()
