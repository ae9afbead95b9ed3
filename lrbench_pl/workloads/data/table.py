"""A table with a column to predict: read by polars, encoded by the training part, held as one tensor of rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from lrbench_pl.words import counted
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data.loaders import EvalLoader, TrainLoader, mixed_seed, sample_order
from lrbench_pl.workloads.data.module import CheckOn, Device, DeviceDataModule, held_out_part
from lrbench_pl.workloads.data.sources import DataError, ensure_memory, stratified_split
from lrbench_pl.workloads.data.text import data_file
from lrbench_pl.workloads.regressor import Regressor

if TYPE_CHECKING:
    import polars

Task = Literal["classification", "regression"]

NULL_VALUES = ("", "?", "NA", "NaN", "nan", "null")
_PARQUET = (".parquet", ".pq")
_MOST_NAMED = 8  # columns named in a message


@dataclass(frozen=True)
class Encoded:
    """A table as numbers.

    Args:
        features: Float32 of shape (N, F): standardised numbers and one-hot categories.
        target: Labels, int64 of shape (N,), or standardised numbers, float32 of shape (N,).
        train: Indices of the rows to train on.
        validation: Indices of the rows to check on.
        test: Indices of the rows of the test set.
        names: Names of the features.
        classes: The classes, sorted; none for regression.
        target_mean: Mean of the target over the training part; 0 for classification.
        target_std: Standard deviation of the target over the training part; 1 for classification.
    """

    features: Tensor
    target: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    names: tuple[str, ...]
    classes: tuple[Any, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0


class TableDataModule(DeviceDataModule):
    r"""The rows of a CSV or Parquet file, held as one tensor on the training device.

    Numbers and booleans are standardised, texts are one-hot encoded; means, standard deviations and categories are
    those of the training part. A category that the training part does not have is encoded as zeros. Test and
    validation rows are chosen by the seed, stratified by class for classification. Batches are a function of (seed,
    position).

    Args:
        file: The file, below ``root`` or absolute. ``.parquet`` and ``.pq`` are Parquet, any other name is CSV, also
            compressed.
        target: Name of the column to predict.
        batch_size: Rows per batch and process.
        task: ``classification``, or ``regression``: the target is standardised by the training part, and errors are
            reported in its own unit.
        seed: Seed of the parts and of the order.
        root: Folder of the file.
        categorical: Columns of numbers that are categories.
        drop: Columns to leave out, such as identifiers.
        validation: Rows held out to check on: a share of those that are not tested on, or a number.
        test: Rows held out for the test: a share of the table or a number.
        check_on: ``validation``, or ``test``: no validation part, checks use the test part.
        separator: Between the columns of a CSV file; None for a tab in ``.tsv`` files and a comma in others.
        header: Whether the first line of a CSV file names the columns; else they are ``column_1``, ``column_2``, ….
        null_values: Texts of a CSV file that stand for a missing value.
        eval_batch_size: Rows per batch of validation and test.
        train_eval: Training rows on which the final training loss is measured.
        device: ``auto``, the training device; or ``cpu`` if that has no room.

    Raises:
        DataError: If the file cannot be read, if values are missing, or if an argument does not fit the table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> rows = [f"{n % 7},{'red' if n % 3 else 'blue'},{'yes' if n % 2 else 'no'}" for n in range(60)]
        >>> _ = path.write_text("\n".join(["size,colour,sold", *rows]))
        >>> data = TableDataModule(str(path), target="sold", batch_size=16)
        >>> data.num_classes, data.encoded.classes, data.encoded.names
        (2, ('no', 'yes'), ('size', 'colour=blue', 'colour=red'))
        >>> tuple(next(data.train_dataloader())[0].shape)
        (16, 3)
    """

    def __init__(
        self,
        file: str | None,
        target: str | None,
        batch_size: int,
        task: Task = "classification",
        seed: int = 0,
        root: str = "data",
        categorical: Sequence[str] = (),
        drop: Sequence[str] = (),
        validation: float = 0.1,
        test: float = 0.1,
        check_on: CheckOn = "validation",
        separator: str | None = None,
        header: bool = True,
        null_values: Sequence[str] = NULL_VALUES,
        eval_batch_size: int = 2000,
        train_eval: int = 2000,
        device: Device = "auto",
    ) -> None:
        super().__init__(batch_size, seed, root, check_on, device)
        if task not in ("classification", "regression"):
            raise DataError(f"dataset.task must be 'classification' or 'regression', got {task!r}")
        self.path = data_file(root, file, "a CSV or Parquet file")
        self.target, self.task = target, task
        self.categorical, self.drop = tuple(categorical), tuple(drop)
        self.validation, self.test = validation, test
        self.separator = ("\t" if ".tsv" in self.path.suffixes else ",") if separator is None else separator
        self.header, self.null_values = header, tuple(null_values)
        self.eval_batch_size, self.train_eval = eval_batch_size, train_eval
        self._placed: tuple[Tensor, Tensor] | None = None

    @property
    def module_class(self) -> type[pl.LightningModule]:
        """The LightningModule that trains on this table."""
        return Regressor if self.task == "regression" else Classifier

    @property
    def num_classes(self) -> int:
        """Number of classes; 1 for regression."""
        return len(self.encoded.classes) or 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Number of features, as a shape."""
        return (self.encoded.features.shape[1],)

    @property
    def train_samples(self) -> int:
        """Number of training rows."""
        return len(self.encoded.train)

    @property
    def target_std(self) -> float:
        """Standard deviation of the target over the training part, in its own unit; 1 for classification."""
        return self.encoded.target_std

    @functools.cached_property
    def encoded(self) -> Encoded:
        """The table as numbers."""
        options = (self.separator, self.header, self.null_values)
        try:
            table = _read_table(self.path, self.path.stat().st_mtime_ns, *options)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}); give another dataset.file=PATH") from error
        return self._encode(table)

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the table and place it on the device."""
        if self._placed is None:
            self._check_batch(len(self.encoded.train))
            features, target = self._place(self.encoded.features, self.encoded.target)
            self._placed = (features, target)

    @property
    def _ready(self) -> tuple[Tensor, Tensor]:
        self.setup()
        assert self._placed is not None
        return self._placed

    def train_dataloader(self) -> TrainLoader:
        """Return the endless stream of training batches."""
        features, target = self._ready
        rank, world_size = self._world
        return TrainLoader(
            features,
            target,
            self.encoded.train,
            self.batch_size,
            self.seed,
            normalise=None,
            rank=rank,
            world_size=world_size,
        )

    def val_dataloader(self) -> EvalLoader:
        """Return the rows that checks are made on."""
        return self._evaluate(self.encoded.test if self.check_on == "test" else self.encoded.validation)

    def test_dataloader(self) -> EvalLoader:
        """Return the rows of the test set."""
        return self._evaluate(self.encoded.test)

    def train_eval_dataloader(self) -> EvalLoader:
        """Return a fixed part of the training rows."""
        order = sample_order(len(self.encoded.train), self.seed, epoch=0)
        return self._evaluate(self.encoded.train[order[: self.train_eval]])

    def _evaluate(self, index: Tensor) -> EvalLoader:
        features, target = self._ready
        return EvalLoader(features, target, index, self.eval_batch_size, None, *self._world)

    # -- from a table to numbers ------------------------------------------------------------------------------

    def _encode(self, table: polars.DataFrame) -> Encoded:
        for option, columns in (("drop", self.drop), ("categorical", self.categorical)):
            for column in columns:
                self._check_column(table, column, f"dataset.{option}")
        table = table.drop(self.drop)
        self._check_column(table, self.target, "dataset.target")
        _check_complete(self.path, table)
        target, inputs = table[str(self.target)], table.drop(str(self.target))
        if self.task == "regression":
            values = self._numbers(target)
            parts = self._parts(len(table), None)
            mean, std = _moments(values[parts[0]])
            if std == 0:
                raise DataError(
                    f"{self.path}: the target {self.target!r} is {mean:g} in every row of the training part"
                )
            labels, classes = torch.from_numpy((values - mean) / std).float(), tuple[Any, ...]()
        else:
            mean, std = 0.0, 1.0
            labels, classes = self._classes(target)
            parts = self._parts(len(table), labels)
        train, validation, test = parts
        features, names = self._features(inputs, train.numpy())
        return Encoded(features, labels, train, validation, test, tuple(names), classes, mean, std)

    def _check_column(self, table: polars.DataFrame, column: str | None, option: str) -> None:
        """Refuse a column that the table does not have."""
        if column in table.columns:
            return
        hint = f"; set {option}=NAME" if option == "dataset.target" else ""
        if len(table.columns) == 1 and ";" in table.columns[0]:
            hint = "; its columns seem to be separated by ';': set \"dataset.separator=';'\""
        raise DataError(
            f"{option} must name a column of {self.path}, got {column!r}; there are {_listed(table.columns)}{hint}"
        )

    def _parts(self, rows: int, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of training, validation and test, each in ascending order."""
        split = functools.partial(_split, labels)
        rest, test = split(torch.arange(rows), held_out_part("dataset.test", self.test, rows), self.seed, "test")
        if self.check_on == "test":
            return rest, rest[:0], test
        held_out = held_out_part("dataset.validation", self.validation, len(rest))
        train, validation = split(rest, held_out, self.seed, "validation")
        return train, validation, test

    def _numbers(self, target: polars.Series) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the target of a regression."""
        if not target.dtype.is_numeric():
            raise DataError(
                f"{self.path}: a regression takes a target of numbers, but {target.name!r} is {target.dtype} "
                f"(such as {target[0]!r}); set dataset.task=classification"
            )
        return _finite(self.path, target)

    def _classes(self, target: polars.Series) -> tuple[Tensor, tuple[Any, ...]]:
        """Return the labels of a classification and what they stand for."""
        if target.dtype.is_float() and not bool((target == target.round()).all()):
            raise DataError(
                f"{self.path}: a classification takes a target of classes, but {target.name!r} has fractions "
                f"(such as {target.filter(target != target.round())[0]!r}); choose dataset=table_regression"
            )
        classes, labels = np.unique(_plain(self.path, target), return_inverse=True)
        if len(classes) > max(2, len(target) // 2):
            what = "choose dataset=table_regression" if target.dtype.is_numeric() else "set dataset.target=NAME"
            raise DataError(
                f"{self.path}: the target {target.name!r} has {len(classes)} different values in {len(target)} rows, "
                f"too many for classes; {what}"
            )
        return torch.from_numpy(labels.astype(np.int64)), tuple(classes.tolist())

    def _features(self, inputs: polars.DataFrame, train: np.ndarray[Any, Any]) -> tuple[Tensor, list[str]]:
        """Return standardised numbers and one-hot categories, by the training rows alone, and their names."""
        columns, names = [], []
        for column in inputs:
            number = column.dtype.is_numeric() and column.name not in self.categorical
            if number or column.dtype.base_type() in _booleans():
                values = _finite(self.path, column)
                mean, std = _moments(values[train])
                columns.append(((values - mean) / (std or 1.0))[:, None])
                names.append(column.name)
                continue
            texts = _plain(self.path, column)
            categories = np.unique(texts[train])
            if len(categories) > max(2, len(train) // 2):
                raise DataError(
                    f"{self.path}: the column {column.name!r} has {len(categories)} different texts in {len(train)} "
                    f"training rows, too many for categories; leave it out with dataset.drop=[{column.name}]"
                )
            ensure_memory(
                len(inputs) * len(categories),
                torch.device("cpu"),
                f"leave out the column {column.name!r}: dataset.drop",
            )
            columns.append(texts[:, None] == categories)
            names += [f"{column.name}={category}" for category in categories]
        if not columns:
            raise DataError(f"{self.path} has no column but the target; give a table with columns to predict it from")
        return torch.from_numpy(np.concatenate([column.astype(np.float32) for column in columns], 1)), names


def _split(labels: Tensor | None, rows: Tensor, held_out: int, seed: int, part: str) -> tuple[Tensor, Tensor]:
    """Return the rows to keep and those to hold out, stratified if there are labels."""
    if labels is not None:
        kept, out = stratified_split(labels[rows], held_out, seed, f"dataset.{part}")
        return rows[kept], rows[out]
    stream = {"test": 2, "validation": 3}[part]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(mixed_seed(seed, stream, 0)))
    return rows[order[held_out:].sort().values], rows[order[:held_out].sort().values]


@functools.lru_cache(maxsize=2)  # the jobs of a sweep in one process share it
def _read_table(path: Path, modified: int, separator: str, header: bool, null_values: tuple[str, ...]) -> Any:
    """Return the table in a file."""
    import polars

    try:
        if path.suffix.lower() in _PARQUET:
            return polars.read_parquet(path)
        table = polars.read_csv(
            path,
            separator=separator,
            has_header=header,
            null_values=list(null_values),
            infer_schema_length=None,
        )
        # polars counts the columns without names from 0 or from 1, depending on its version
        return table if header else table.rename(dict(zip(table.columns, _numbered(len(table.columns)), strict=True)))
    except (polars.exceptions.PolarsError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{path} cannot be read as a table ({reason}); expected a CSV or Parquet file") from error


def _numbered(columns: int) -> list[str]:
    """Return names of columns that have none."""
    return [f"column_{number}" for number in range(1, columns + 1)]


def _check_complete(path: Path, table: polars.DataFrame) -> None:
    """Refuse missing values, by column, number and first row."""
    missing = []
    for column in table:
        absent = column.is_null()
        if column.dtype.is_float():
            absent |= column.is_nan().fill_null(False)
        if rows := int(absent.sum()):
            first = int(absent.arg_true()[0]) + 1
            missing.append(f"{column.name!r} ({rows} of {len(table)} rows, the first in row {first})")
    if missing:
        raise DataError(
            f"{path}: values are missing in {counted(len(missing), 'column')}: {_listed(missing, quote=False)}; fill "
            "them or remove the rows, or leave out columns with dataset.drop=[NAME]"
        )
    if not len(table):
        raise DataError(f"{path} has no rows")


def _finite(path: Path, column: polars.Series) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of numbers, each finite."""
    values: np.ndarray[Any, np.dtype[np.float64]] = column.cast(_polars().Float64).to_numpy()
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"{path}: the column {column.name!r} must hold finite numbers, got {values[row]} in row {row + 1}"
        )
    return values


def _moments(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Return mean and standard deviation, which is 0 for equal numbers whatever the rounding."""
    if values.max() == values.min():
        return float(values[0]), 0.0
    return float(values.mean()), float(values.std())


def _plain(path: Path, column: polars.Series) -> np.ndarray[Any, Any]:
    """Return a column of categories: as integers, or as texts."""
    kind, polars = column.dtype, _polars()
    if kind.is_numeric():
        values: np.ndarray[Any, Any] = column.to_numpy()
        return values.astype(np.int64) if bool((values == np.round(values)).all()) else values
    if kind.base_type() in (*_booleans(), polars.String, polars.Categorical, polars.Enum):
        texts: np.ndarray[Any, Any] = column.cast(polars.String).to_numpy()
        return texts.astype(str)
    raise DataError(
        f"{path}: a table holds numbers, texts and booleans, but the column {column.name!r} is {kind}; convert it, or "
        f"leave it out with dataset.drop=[{column.name}]"
    )


def _polars() -> Any:
    import polars

    return polars


def _booleans() -> tuple[Any, ...]:
    return (_polars().Boolean,)


def _listed(names: Sequence[str], quote: bool = True) -> str:
    """Return the first names, and how many more there are."""
    shown = [repr(name) if quote else name for name in names[:_MOST_NAMED]]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(shown) + more
