"""The training loop that both engines share: tables of coming steps, one static step, leaving, state."""

from __future__ import annotations

import contextlib
import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrbench_pl.sweeps.fused.engine import Batches, CannotFuse, Replica
from lrbench_pl.sweeps.fused.layout import Layout
from lrbench_pl.sweeps.fused.objective import Objective
from lrbench_pl.sweeps.fused.optimizers import TorchUpdate, make_update
from lrbench_pl.workloads.data.loaders import StreamLoader

# Steps whose rates and samples are prepared at a time. On a device the next ones are prepared while it computes.
_TABLE = 128
_PRECISIONS: dict[str, torch.dtype | None] = {"32": None, "32-true": None, "bf16-mixed": torch.bfloat16}


class Program(ABC):
    """Base of the engines. Parameters are rows of one tensor, and each step is the same sequence of kernels.

    A step reads its rates and samples from tables at a row that is counted on the device, so that the sequence can be
    captured in a CUDA graph. Subclasses compute the gradients.

    Args:
        replicas: The jobs, at least one.
        loaders: The training batches of each stream.
        precision: The Trainer's: ``32-true`` or ``bf16-mixed``.
        device: Where to train.

    Raises:
        CannotFuse: If these replicas cannot be trained together.
    """

    name: str

    def __init__(
        self, replicas: Sequence[Replica], loaders: Sequence[StreamLoader], precision: str, device: torch.device
    ) -> None:
        if precision not in _PRECISIONS:
            raise CannotFuse(f"trainer.precision must be 32-true or bf16-mixed to be fused, got {precision}")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.step = 0
        self.alive: list[int] = list(range(len(replicas)))
        self._replicas, self._loaders = list(replicas), list(loaders)
        self._dtype, self._device = _PRECISIONS[precision], device
        self._objective = Objective(replicas[0].module)
        optimizers = [replica.module.configure_optimizers() for replica in replicas]
        self._layout = self._check(optimizers)
        self._rates = np.array([replica.rates for replica in replicas], dtype=np.float64).T  # [steps, replicas]
        self._scales = np.array(
            [[group.get("lr_scale", 1.0) for group in optimizer.param_groups] for optimizer in optimizers]
        ).T  # [groups, replicas]
        self._rows: list[int] = list(self.alive)  # the replica in each row, also those that left
        self._left: dict[int, dict[str, Any]] = {}
        self._first_nonfinite: dict[int, int] = {}
        self._unread: list[tuple[int, Tensor]] = []
        self._read: dict[int, Tensor] = {}
        self._read_up_to = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._is_warm = False
        self._parameters = self._rows_of_modules()
        self._buffers = self._buffers_of_modules()
        self._update = make_update(optimizers, self._layout, self._parameters)
        self.draws_random_numbers = self._probe()
        self._random = [self._generator(replica) for replica in replicas] if self.draws_random_numbers else []
        self._allocate()

    # -- what the replicas have in common ---------------------------------------------------------------------

    def _check(self, optimizers: Sequence[torch.optim.Optimizer]) -> Layout:
        """Return the layout that all replicas share."""
        first: Layout | None = None
        for replica, optimizer in zip(self._replicas, optimizers, strict=True):
            if type(replica.module) is not type(self._replicas[0].module):
                raise CannotFuse("the jobs have modules of several classes")
            if any(getattr(part, "_compiled_call_impl", None) for part in replica.module.modules()):
                raise CannotFuse("the model is compiled (compile=true)")
            layout = Layout.of(replica.module.model, optimizer.param_groups)
            if first is not None and layout != first:
                raise CannotFuse("the jobs have networks or parameter groups of several shapes")
            first = layout
        assert first is not None
        for loader in self._loaders:
            if loader.device.type != self._device.type:
                raise CannotFuse(
                    f"the data are on the {loader.device.type}, the training is on the {self._device.type}; "
                    "use dataset.device=auto"
                )
        for name, parameter in self._replicas[0].module.model.named_parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise CannotFuse(f"parameter {name} is {parameter.dtype}; parameters in float32 can be fused")
        return first

    def _rows_of_modules(self) -> Tensor:
        rows = torch.zeros(len(self._replicas), self._layout.width)
        with torch.no_grad():
            for row, replica in zip(rows, self._replicas, strict=True):
                own = dict(replica.module.model.named_parameters())
                for name, view in zip(self._layout.names, self._layout.of_row(row), strict=True):
                    view.copy_(own[name])
        return rows.to(self._device)

    def _buffers_of_modules(self) -> dict[str, Tensor]:
        """Return what each replica has besides trained parameters: buffers, and parameters that are not trained."""
        found: dict[str, list[Tensor]] = {}
        for replica in self._replicas:
            model = replica.module.model
            frozen = [(name, p) for name, p in model.named_parameters() if name not in self._layout.names]
            for name, tensor in [*model.named_buffers(), *frozen]:
                found.setdefault(name, []).append(tensor.detach())
        return {name: torch.stack(tensors).to(self._device) for name, tensors in found.items()}

    def _probe(self) -> bool:
        """Return whether a training step draws random numbers.

        Raises:
            CannotFuse: If a parameter takes no part in the loss, which torch's optimizers would leave as it is.
        """
        model = copy.deepcopy(self._replicas[0].module.model).to(self._device)
        loader = self._loaders[self._replicas[0].stream]
        inputs, target = loader.assemble(loader.indices(0, 1)[0], loader.draws(0))
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            before = self._random_state()
            with self._precision():
                loss = self._objective.loss(model(self._objective.inputs(inputs)), target)
            draws = not torch.equal(before, self._random_state())
        own = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, [own[name] for name in self._layout.names], allow_unused=True)
        for name, gradient in zip(self._layout.names, gradients, strict=True):
            if gradient is None:
                raise CannotFuse(f"parameter {name} takes no part in the loss")
        return draws

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _generator(self, replica: Replica) -> torch.Generator:
        generator = torch.Generator(self._device).manual_seed(replica.seed)
        if self._device.type == "cpu" and replica.random is not None:
            generator.set_state(replica.random.clone())
        return generator

    def _precision(self) -> Any:
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype, cache_enabled=False)

    # -- memory at fixed places -------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Allocate what a step reads and writes, for the rows that there are."""
        device, rows, groups = self._device, len(self._rows), len(self._layout.groups)
        self._gradients = torch.zeros_like(self._parameters)
        self._losses = torch.zeros(rows, device=device)
        self._loss_table = torch.zeros(_TABLE, rows, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)  # row of the tables that is due
        self._coefficients = torch.zeros(_TABLE, self._update.coefficients, groups, rows, 1, device=device)
        self._streams = sorted({self._replicas[replica].stream for replica in self._rows})
        self._indices, self._draws = {}, {}
        for stream in self._streams:
            loader = self._loaders[stream]
            self._indices[stream] = loader.indices(0, 1).expand(_TABLE, -1).clone()
            draws = loader.draws(0)
            self._draws[stream] = None if draws is None else draws.to(device).expand(_TABLE, *draws.shape).clone()
        if isinstance(self._update, TorchUpdate):
            self._update.bind(self._parameters, self._gradients)
        self._graph = None
        self._bind()

    @abstractmethod
    def _bind(self) -> None:
        """Point the networks at the rows."""

    # -- training ---------------------------------------------------------------------------------------------

    def advance(self, steps: int) -> None:
        """Take steps. The host waits for nothing on the device in between."""
        end = self.step + steps
        if end > len(self._rates):
            raise ValueError(f"the rates of {len(self._rates)} steps are known, got step {end}")
        if not self.alive:
            self.step = end
            return
        self._look()
        while self.step < end:
            count = min(_TABLE, end - self.step)
            rates = self._fill_tables(count)
            if self._device.type == "cuda" and self._graph is None:
                self._capture()
            on = [replica not in self._left for replica in self._rows]
            for place in range(count):
                if self._graph is None:
                    self._take_step()
                else:
                    self._graph.replay()
                if isinstance(self._update, TorchUpdate):
                    self._update.take_step(rates[place], on)
            self._unread.append((self.step, self._loss_table[:count].clone()))
            self.step += count

    def _fill_tables(self, count: int) -> np.ndarray:
        """Prepare rates and samples of coming steps; return the rates, of shape (steps, groups, rows)."""
        rates: np.ndarray = (
            self._rates[self.step : self.step + count, None, self._rows] * self._scales[None, :, self._rows]
        )
        rates[..., [replica in self._left for replica in self._rows]] = 0.0
        table = torch.from_numpy(self._update.table(rates, self.step)).float().unsqueeze(-1)
        self._coefficients[:count].copy_(self._pinned(table), non_blocking=True)
        for stream in self._streams:
            loader = self._loaders[stream]
            self._indices[stream][:count].copy_(loader.indices(self.step, count))
            if (draws := self._draws[stream]) is not None:
                drawn = [loader.draws(position) for position in range(self.step, self.step + count)]
                draws[:count].copy_(self._pinned(torch.stack(drawn)), non_blocking=True)  # type: ignore[arg-type]
        self._place.zero_()
        return rates

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def _take_step(self) -> None:
        """Take one step: a sequence of kernels that depends on nothing on the host."""
        batches = {stream: self._batch(stream) for stream in self._streams}
        self._compute_gradients(batches)
        with torch.no_grad():
            self._loss_table.index_copy_(0, self._place, self._losses.unsqueeze(0))
            coefficients = self._coefficients.index_select(0, self._place)[0]
            self._update.apply(self._parameters, self._gradients, coefficients)
            self._place.add_(1)

    def _batch(self, stream: int) -> tuple[Tensor, Tensor]:
        draws = self._draws[stream]
        drawn = None if draws is None else draws.index_select(0, self._place)[0]
        inputs, target = self._loaders[stream].assemble(self._indices[stream].index_select(0, self._place)[0], drawn)
        return self._objective.inputs(inputs), target

    @abstractmethod
    def _compute_gradients(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Write the gradients of all rows, and their losses."""

    def _capture(self) -> None:
        """Capture a step in a CUDA graph; the steps before it, which warm up the libraries, are undone."""
        changing = [
            self._parameters, self._place, self._losses, self._loss_table,
            *self._buffers.values(), *self._update.state.values(),
        ]  # fmt: skip
        saved = [tensor.clone() for tensor in changing]
        states = [generator.get_state() for generator in self._random]
        with aside(self._device):
            for _ in range(1 if self._is_warm else 3):
                self._take_step()
        for tensor, value in zip(changing, saved, strict=True):
            tensor.copy_(value)
        for generator, state in zip(self._random, states, strict=True):
            generator.set_state(state)
        del saved
        with recorded(self._device, self._random) as graph:
            self._take_step()
        self._graph, self._is_warm = graph, True

    # -- what a check asks ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the losses of the steps since the last look."""
        if not self._unread:
            return
        first = self._unread[0][0]
        losses = torch.cat([losses for _, losses in self._unread]).cpu()
        self._unread = []
        self._read = {replica: losses[:, row] for row, replica in enumerate(self._rows) if replica not in self._left}
        for replica, own in self._read.items():
            bad = (~own.isfinite()).nonzero()
            if len(bad) and replica not in self._first_nonfinite:
                self._first_nonfinite[replica] = first + int(bad[0]) + 1

    def nonfinite(self) -> dict[int, int]:
        """Return the number of the step, from 1, at which each replica's loss first was not finite."""
        self._look()
        return {replica: step for replica, step in self._first_nonfinite.items() if replica in self.alive}

    def train_losses(self) -> dict[int, Tensor]:
        """Return the losses of the steps of the last :meth:`advance`, float32 on the CPU, of each replica alive."""
        self._look()
        return {replica: losses for replica, losses in self._read.items() if replica in self.alive}

    def evaluate(self, loaders: Sequence[Batches]) -> dict[int, dict[str, float]]:
        """Return the metrics of a check of each replica alive."""
        sums: dict[int, Tensor] = {}
        counts: dict[int, int] = {}
        with torch.no_grad(), self._evaluating():
            for loader, streams in _by_identity(loaders).values():
                replicas = [replica for replica in self.alive if self._replicas[replica].stream in streams]
                if not replicas:
                    continue
                total, count = None, 0
                for inputs, target in loader:
                    batch = self._objective.inputs(inputs.to(self._device)), target.to(self._device)
                    added = self._evaluate_batch(replicas, *batch)
                    total = added if total is None else total + added
                    count += target.numel()
                assert total is not None
                for replica, own in zip(replicas, total, strict=True):
                    sums[replica], counts[replica] = own, count
        read = torch.stack(list(sums.values())).cpu() if sums else torch.empty(0)
        return {
            replica: dict(self._objective.metrics(own, counts[replica], self._replicas[replica].target_std))
            for replica, own in zip(sums, read, strict=True)
        }

    @abstractmethod
    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Put the networks into evaluation mode, and back."""
        yield

    @abstractmethod
    def _evaluate_batch(self, replicas: Sequence[int], inputs: Tensor, target: Tensor) -> Tensor:
        """Return the sums of a check (replicas, sums) over one batch."""

    # -- leaving ----------------------------------------------------------------------------------------------

    def leave(self, replicas: Collection[int]) -> None:
        """Stop training replicas. They keep their weights; once a quarter has left, the rest moves together."""
        self._look()
        for replica in replicas:
            if replica not in self.alive:
                raise ValueError(f"replica {replica} does not train; alive are {self.alive}")
        for replica in replicas:
            row = self._rows.index(replica)
            self._left[replica] = self._snapshot(row)
            self.alive.remove(replica)
        masked = len(self._rows) - len(self.alive)
        if self.alive and 4 * masked >= len(self._rows):
            self._compact()

    def _snapshot(self, row: int) -> dict[str, Any]:
        return {
            "parameters": self._parameters[row].cpu().clone(),
            "buffers": {name: tensor[row].cpu().clone() for name, tensor in self._buffers.items()},
        }

    def _compact(self) -> None:
        """Move the rows of the replicas alive together."""
        places = [row for row, replica in enumerate(self._rows) if replica not in self._left]
        index = torch.tensor(places, device=self._device)
        self._graph = None  # before its memory is needed
        self._rows = [self._rows[place] for place in places]
        self._parameters = self._parameters.index_select(0, index)
        self._buffers = {name: tensor.index_select(0, index) for name, tensor in self._buffers.items()}
        self._random = [self._random[place] for place in places] if self._random else []
        self._update.keep(self._parameters, places)
        self._allocate()

    def export(self, replica: int) -> None:
        """Copy weights and buffers into the replica's module: the current ones, or those with which it left."""
        found = self._left.get(replica) or self._snapshot(self._rows.index(replica))
        model = self._replicas[replica].module.model
        own = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        with torch.no_grad():
            for name, view in zip(self._layout.names, self._layout.of_row(found["parameters"]), strict=True):
                own[name].copy_(view)
            for name, buffer in found["buffers"].items():
                own[name].copy_(buffer)

    # -- resuming ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training continues from, as plain tensors and numbers on the CPU."""
        self._look()
        states = [generator.get_state().clone() for generator in self._random]
        return {
            "step": self.step,
            "rows": list(self._rows),
            "alive": list(self.alive),
            "parameters": self._parameters.cpu().clone(),
            "buffers": {name: tensor.cpu().clone() for name, tensor in self._buffers.items()},
            "optimizer": self._update.state_dict(),
            "random": {"states": torch.stack(states)} if states else {},
            "left": {replica: copy.deepcopy(found) for replica, found in self._left.items()},
            "nonfinite": dict(self._first_nonfinite),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same replicas."""
        self._unread, self._read = [], {}
        self._graph = None
        if state["rows"] != self._rows:
            if not set(state["rows"]) <= set(self._rows):
                raise ValueError(
                    f"the state is of replicas {state['rows']}, but this engine now trains {self._rows}; load it into "
                    "an engine as it was built"
                )
            self._update.keep(self._parameters, [self._rows.index(replica) for replica in state["rows"]])
            self._random = [self._random[self._rows.index(row)] for row in state["rows"]] if self._random else []
        self.step, self._rows, self.alive = state["step"], list(state["rows"]), list(state["alive"])
        self._left = {replica: copy.deepcopy(found) for replica, found in state["left"].items()}
        self._first_nonfinite = dict(state["nonfinite"])
        self._parameters = state["parameters"].to(self._device, copy=True)
        self._buffers = {name: tensor.to(self._device, copy=True) for name, tensor in state["buffers"].items()}
        self._update.load_state_dict(state["optimizer"])
        for generator, saved in zip(self._random, state["random"].get("states", ()), strict=True):
            generator.set_state(saved.clone())  # torch ignores where in its storage a view begins
        self._allocate()


@functools.cache
def side_stream(device: torch.device, number: int = 0) -> torch.cuda.Stream:
    """Return a stream that all engines use: the libraries keep a workspace for each stream that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Run what is in the context on the stream of captures, whose workspaces then exist before a capture."""
    main, side = torch.cuda.current_stream(device), side_stream(device)
    side.wait_stream(main)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        main.wait_stream(side)


@contextlib.contextmanager
def recorded(device: torch.device, random: Sequence[torch.Generator] = ()) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what runs in the context in a CUDA graph.

    Args:
        device: Where it runs.
        random: The random numbers that it continues.

    Raises:
        torch.cuda.OutOfMemoryError: If memory ran out, also where the end of the capture hides it behind an error of
            its own. The graph's memory is free then.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in random:
        graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=side_stream(device)):
            yield graph
    except RuntimeError as error:
        graph.reset()
        _raise_out_of_memory(error)
        raise


def _raise_out_of_memory(error: BaseException) -> None:
    """Raise the lack of memory behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.cuda.OutOfMemoryError):
            raise cause
        cause = cause.__context__


def _by_identity(loaders: Sequence[Batches]) -> dict[int, tuple[Batches, set[int]]]:
    """Return the distinct loaders, each with the streams that use it."""
    found: dict[int, tuple[Batches, set[int]]] = {}
    for stream, loader in enumerate(loaders):
        found.setdefault(id(loader), (loader, set()))[1].add(stream)
    return found
