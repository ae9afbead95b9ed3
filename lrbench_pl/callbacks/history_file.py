"""The file ``metrics.csv`` of a run, which no kill loses and a resumed run continues."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from lrbench_pl.files import replacing


class HistoryFile(ExperimentWriter):
    """Writer of a :class:`CSVLogger` that appends rows, and replaces the file atomically where it cannot.

    Lightning's own writer deletes the file at the start of a fit and writes it again in place for each new column; a
    process that is killed in between loses all rows. A write that fails leaves the file as it was, and the rows wait
    for the next one.

    Args:
        log_dir: Folder of the file.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self._is_begun = False  # the rows of an earlier start are replaced by the first that are saved

    def _check_log_dir_exists(self) -> None:
        """Keep the file of an earlier start."""

    def save(self) -> None:
        """Write the rows that wait."""
        if not self.metrics:
            return
        if self._record_new_keys() or not self._is_begun or not self._path.is_file():
            self._replace([*parse(self.text()), *self.metrics])
        else:
            self._append(_lines(self.metrics_keys, self.metrics))
        self._is_begun = True
        self.metrics = []

    def text(self) -> str:
        """Return the rows that this training has written, as CSV."""
        if not self._is_begun:
            return ""
        try:
            return self._path.read_bytes().decode()
        except FileNotFoundError:
            return ""

    def continue_from(self, text: str) -> None:
        """Replace the file by the rows in a checkpoint."""
        self.metrics = [*parse(text), *self.metrics]
        self.save()

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with replacing(self._path) as file:
            file.write(_lines(self.metrics_keys, rows, header=True).encode())

    def _append(self, text: str) -> None:
        with open(self._path, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                data = memoryview(text.encode())
                while data:
                    data = data[file.write(data) :]
            except BaseException:
                file.truncate(size)
                raise


def use_history_files(loggers: Iterable[Logger]) -> None:
    """Let every :class:`CSVLogger` of a local folder write through a :class:`HistoryFile`."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and "://" not in logger.log_dir:
            logger._experiment = HistoryFile(logger.log_dir)


def history_files(loggers: Iterable[Logger]) -> list[HistoryFile]:
    """Return the open history files of loggers; none in a process that does not write."""
    found = [logger.experiment for logger in loggers if isinstance(logger, CSVLogger)]
    return [writer for writer in found if isinstance(writer, HistoryFile)]


def parse(text: str) -> list[dict[str, Any]]:
    r"""Return the complete rows of a history, without empty cells.

    Example:
        >>> parse("loss,step,val\n0.5,0,\n,1,0.9\n0.4,2")
        [{'loss': '0.5', 'step': '0'}, {'step': '1', 'val': '0.9'}]
    """
    complete = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(complete)]


def to_text(rows: Iterable[Mapping[str, Any]]) -> str:
    r"""Return rows as a history.

    Example:
        >>> to_text([{"step": "0", "lr": "0.1"}, {"step": "1", "val": "0.9"}])
        'step,lr,val\r\n0,0.1,\r\n1,,0.9\r\n'
    """
    rows = list(rows)
    return _lines(dict.fromkeys(name for row in rows for name in row), rows, header=True)


def _lines(keys: Iterable[str], rows: Iterable[Mapping[str, Any]], header: bool = False) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(keys))
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
