"""A text as one tensor of symbols: contiguous parts, and windows of a fixed length to train on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrbench_pl.workloads.data.loaders import SampleStream, StreamLoader, mixed_seed, sample_order
from lrbench_pl.workloads.data.module import CheckOn, Device, DeviceDataModule, held_out_part, whole_number
from lrbench_pl.workloads.data.sources import DataError
from lrbench_pl.workloads.language_model import LanguageModel


class WindowStream(SampleStream):
    """The windows of all epochs, concatenated. In each epoch the text is cut at another offset.

    An epoch shows each symbol once as an input, but for fewer than ``2 * context`` at both ends together.

    Args:
        symbols: Number of symbols of the training part.
        context: Symbols per window.
        seed: Seed of offsets and permutations.
        device: Where the stream is.

    Example:
        >>> stream = WindowStream(symbols=41, context=10, seed=0)
        >>> stream.samples, sorted(start - int(min(stream.cut(0, 3))) for start in stream.cut(0, 3).tolist())
        (3, [0, 10, 20])
    """

    def __init__(self, symbols: int, context: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.samples = max(0, symbols // context - 1)
        super().__init__(torch.arange(self.samples, device=device) * context, seed)
        self._context = context

    def _permute(self, epoch: int) -> Tensor:
        return super()._permute(epoch) + mixed_seed(self._seed, 1, epoch) % self._context


class WindowLoader(StreamLoader):
    """The endless stream of training windows, a pure function of (seed, position).

    Args:
        symbols: The training part, of shape (N,), on the training device.
        context: Symbols per window.
        batch_size: Windows per batch and process.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes that share each global batch.

    Attributes:
        position: Number of batches served so far.

    Example:
        >>> loader = WindowLoader(torch.arange(50, dtype=torch.uint8), context=4, batch_size=3, seed=0)
        >>> symbols, following = next(loader)
        >>> tuple(symbols.shape), bool((following == symbols + 1).all())
        ((3, 4), True)
    """

    def __init__(
        self, symbols: Tensor, context: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(WindowStream(len(symbols), context, seed, symbols.device), batch_size, rank, world_size)
        self._symbols, self._context = symbols, context

    @property
    def device(self) -> torch.device:
        """Return the device of the batches."""
        return self._symbols.device

    def assemble(self, index: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the windows that begin at these symbols."""
        del draws
        return windows(self._symbols, index, self._context)


class WindowEvalLoader:
    """Windows of a text in large batches, once through, in order. Each process takes every ``world_size``-th window.

    Args:
        symbols: The text, of shape (N,).
        starts: First symbol of each window, in ascending order if the last is cut short by the end of the text.
        context: Symbols per window.
        batch_size: Windows per batch.
        rank: Rank of this process.
        world_size: Number of processes that share the windows. None is shown twice.

    Example:
        >>> text = torch.arange(8, dtype=torch.uint8)
        >>> [following.tolist() for _, following in WindowEvalLoader(text, torch.arange(0, 7, 3), 3, batch_size=2)]
        [[[1, 2, 3], [4, 5, 6]], [[7]]]
    """

    def __init__(
        self, symbols: Tensor, starts: Tensor, context: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        starts = starts[rank::world_size]
        whole = starts + context < len(symbols)
        self._symbols, self._context = symbols, context
        self._whole = [part for part in torch.split(starts[whole], batch_size) if len(part)]
        self._rest = starts[~whole].tolist()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._whole) + len(self._rest)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of symbols and of the symbols that follow, int64 of shape (B, T)."""
        for starts in self._whole:
            yield windows(self._symbols, starts.to(self._symbols.device), self._context)
        for start in self._rest:
            rest = self._symbols[None, start:].long()
            yield rest[:, :-1], rest[:, 1:]


class TextDataModule(DeviceDataModule):
    """The characters of a UTF-8 text file, held as one tensor on the training device.

    The text is cut into three contiguous parts: training, validation, test. Batches are windows of the training part,
    a function of (seed, position). Validation and test predict each character of their part but the first once, from
    those before it in windows of ``context`` characters.

    Args:
        file: The text file, below ``root`` or absolute.
        context: Characters per window.
        batch_size: Windows per batch and process.
        seed: Seed of the order.
        root: Folder of the file.
        validation: Characters held out to check on: a share of the text or a number.
        test: Characters at the end of the text held out for the test: a share of the text or a number.
        check_on: ``validation``, or ``test``: no validation part, checks use the test part.
        eval_batch_size: Windows per batch of validation and test; None for 4,096 characters on the CPU and 65,536
            elsewhere.
        train_eval: Training windows on which the final training loss is measured.
        device: ``auto``, the training device; or ``cpu`` if that has no room.

    Attributes:
        symbols: The distinct characters, sorted; each is represented by its index.

    Raises:
        DataError: If the file is missing, no UTF-8 text or too short, or an argument is out of its range.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "text.txt"
        >>> _ = path.write_text("to be or not to be, " * 50)
        >>> data = TextDataModule(str(path), context=16, batch_size=4)
        >>> data.symbols, data.num_classes, tuple(next(data.train_dataloader())[0].shape)
        (' ,benort', 8, (4, 16))
    """

    module_class = LanguageModel

    def __init__(
        self,
        file: str | None,
        context: int,
        batch_size: int,
        seed: int = 0,
        root: str = "data",
        validation: float = 0.05,
        test: float = 0.05,
        check_on: CheckOn = "validation",
        eval_batch_size: int | None = None,
        train_eval: int = 200,
        device: Device = "auto",
    ) -> None:
        super().__init__(batch_size, seed, root, check_on, device)
        whole_number("dataset.context", context, 1)
        self.path = data_file(root, file, "a UTF-8 text file")
        self.context, self.input_shape = context, (context,)
        self.validation, self.test = validation, test
        self.eval_batch_size, self.train_eval = eval_batch_size, train_eval
        self._parts: list[Tensor] | None = None

    @property
    def symbols(self) -> str:
        """The distinct characters, sorted."""
        return read_text(self.path)[0]

    @property
    def num_classes(self) -> int:
        """Number of distinct characters."""
        return len(self.symbols)

    @property
    def train_samples(self) -> int:
        """Number of training windows."""
        return WindowStream(len(self._ready[0]), self.context, self.seed).samples

    @property
    def tokens_per_sample(self) -> int:
        """Characters per window."""
        return self.context

    def setup(self, stage: str | None = None) -> None:
        """Read the text, cut it and place it on the device."""
        if self._parts is not None:
            return
        _, text = read_text(self.path)
        n = len(text)
        test = held_out_part("dataset.test", self.test, n)
        validation = 0 if self.check_on == "test" else held_out_part("dataset.validation", self.validation, n - test)
        train = n - validation - test
        samples = WindowStream(train, self.context, self.seed).samples
        self._check_batch(
            samples,
            f"the training part of {train:,} characters, {samples} windows of {self.context}",
            "lower batch_size or dataset.context",
        )
        if short := [name for name, size in (("validation", validation), ("test", test)) if size == 1]:
            raise DataError(f"the {short[0]} part of {self.path} has 1 character; raise dataset.{short[0]}")
        (placed,) = self._place(text)
        self._parts = list(torch.split(placed, [train, validation, test]))

    @property
    def _ready(self) -> list[Tensor]:
        self.setup()
        assert self._parts is not None
        return self._parts

    def train_dataloader(self) -> WindowLoader:
        """Return the endless stream of training windows."""
        return WindowLoader(self._ready[0], self.context, self.batch_size, self.seed, *self._world)

    def val_dataloader(self) -> WindowEvalLoader:
        """Return the part that checks are made on."""
        return self._evaluate(self._ready[2 if self.check_on == "test" else 1])

    def test_dataloader(self) -> WindowEvalLoader:
        """Return the test part."""
        return self._evaluate(self._ready[2])

    def train_eval_dataloader(self) -> WindowEvalLoader:
        """Return fixed windows of the training part."""
        train = self._ready[0]
        order = sample_order(len(train) // self.context - 1, self.seed, epoch=0)
        return self._evaluate(train, order[: self.train_eval] * self.context)

    def _evaluate(self, part: Tensor, starts: Tensor | None = None) -> WindowEvalLoader:
        starts = torch.arange(0, len(part) - 1, self.context) if starts is None else starts
        size = self.eval_batch_size or max(1, (4096 if part.device.type == "cpu" else 65536) // self.context)
        return WindowEvalLoader(part, starts, self.context, size, *self._world)


def windows(symbols: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Return the windows of a text that begin at ``starts``, and the same one symbol later: int64 of shape (B, T).

    Example:
        >>> windows(torch.arange(9, dtype=torch.uint8), torch.tensor([0, 5]), context=3)[1].tolist()
        [[1, 2, 3], [6, 7, 8]]
    """
    index = starts[:, None] + torch.arange(context + 1, device=starts.device)
    found = symbols.index_select(0, index.flatten()).view(index.shape).long()
    return found[:, :-1], found[:, 1:]


def read_text(path: Path) -> tuple[str, Tensor]:
    """Return the distinct characters of a file, sorted, and the text as the index of each character.

    Raises:
        DataError: If the file cannot be read or is no UTF-8 text.
    """
    try:
        return _read_text(path, path.stat().st_mtime_ns)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text (byte {error.start}); convert it, such as with iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give another dataset.file=PATH") from error


@functools.lru_cache(maxsize=2)  # the jobs of a sweep in one process share it
def _read_text(path: Path, modified: int) -> tuple[str, Tensor]:
    text = path.read_bytes().decode("utf-8-sig")
    if not text:
        raise DataError(f"{path} is empty; give another dataset.file=PATH")
    symbols, index = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    kind = np.uint8 if len(symbols) <= 256 else np.int32
    return "".join(map(chr, symbols.tolist())), torch.from_numpy(index.astype(kind))


def data_file(root: str, file: str | None, kind: str) -> Path:
    """Return the path of a data file.

    Args:
        root: Folder, for a relative ``file``.
        file: The file.
        kind: What the file must be, for the message.

    Raises:
        DataError: If no file is given, or there is none.

    Example:
        >>> data_file("data", None, "a UTF-8 text file")
        Traceback (most recent call last):
        ...
        lrbench_pl.workloads.data.sources.DataError: dataset.file must name a UTF-8 text file; give dataset.file=PATH
    """
    if file is None:
        raise DataError(f"dataset.file must name {kind}; give dataset.file=PATH")
    path = Path(root).expanduser() / Path(str(file)).expanduser()
    if not path.is_file():
        raise DataError(
            f"{path} was not found; expected {kind}: set dataset.root=FOLDER and dataset.file=PATH below it"
        )
    return path
