"""The policy database: runs of many sweeps with their policies, in a SQLite file or on a PostgreSQL server.

What it holds is a view of the folders that runs wrote; it can be thrown away and built again. A row is data: it may
name policy types of this package and nothing else, which is checked when it is added and again when it is read.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from omegaconf import OmegaConf
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from lrbench_pl.files import FORMAT, ResultError, check_format, version
from lrbench_pl.policies import Policy, from_config, policy_id, to_config
from lrbench_pl.runs.result import FIELD_TYPES, RESULT_FILE, RunResult, stored_settings

ENVIRONMENT = "LRBENCH_DB"
DEFAULT = "lrbench.db"
POLICY_FILE = "policy.yaml"
Form = Literal["jsonl", "csv"]

_SECONDS_TO_WAIT = 60  # for other writers of one SQLite file
_LARGEST = 2**63 - 1  # integer that other programs hold too
_SINCE_FORMAT_1 = ("format", "settings")
_LONGEST = 10_000_000  # steps of a budget: every rate of it is looked at once

_metadata = sa.MetaData()
# The row as JSON is the truth, so that a new field of RunResult is no new schema; the columns are there to ask by.
_runs = sa.Table(
    "lrbench_runs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("optimizer", sa.Text, nullable=False),
    sa.Column("monitor", sa.Text, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("policy_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.Column("policy_config", sa.Text, nullable=False),
)
# One row: the format of the database. A database without this table is of format 1.
_format = sa.Table(
    "lrbench_format",
    _metadata,
    sa.Column("format", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Text, nullable=False),
)
ASKED_BY = ("run_id", "dataset", "model", "optimizer", "monitor", "policy", "policy_id", "status")


class DatabaseError(ValueError):
    """A database that cannot be opened, or a question that it cannot be asked; the message is one line."""


class MissingDatabaseError(DatabaseError):
    """There is no database there yet."""


@dataclass(frozen=True)
class StoredRun:
    """A finished run and the policy that it ran.

    Args:
        result: Its row, with ``policy_id`` filled in.
        policy: The policy, of a type of this package.
    """

    result: RunResult
    policy: Policy


@dataclass(frozen=True)
class Refused:
    """Something that is no row of a policy database.

    Args:
        source: Where it was found: a folder, a file and its line, or a row of the database.
        reason: Why it is refused, in one line.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What was read.

    Args:
        runs: The rows that are good.
        refused: The others, with their reasons.
    """

    runs: tuple[StoredRun, ...]
    refused: tuple[Refused, ...]


# -- one row --------------------------------------------------------------------------------------------------


def stored_run(row: Mapping[str, Any], policy_config: Any) -> StoredRun:
    """A row of the database from plain data.

    Args:
        row: The fields of a :class:`~lrbench_pl.runs.result.RunResult`.
        policy_config: The policy as :func:`lrbench_pl.policies.to_config` writes it.

    Raises:
        ValueError: If the row is none, is of a run that did not end, leaves open what was trained, names anything but
            policies of this package, or has another policy than its ``policy_id`` says.

    Example:
        >>> row = {"run_id": "a1", "policy": "fix", "status": "missed", "seed": 0, "max_steps": 100, "batch_size": 64,
        ...        "dataset": "digits", "model": "mlp", "optimizer": "momentum", "monitor": "val/accuracy"}
        >>> stored_run(row, {"_target_": "lrbench_pl.policies.Constant", "lr": 0.1}).policy
        Constant(lr=0.1)
        >>> stored_run(row, {"_target_": "os.system", "command": "true"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: policy: _target_ must be lrbench_pl.policies.X with X one of Constant, ... got 'os.system'
    """
    run = _checked_run(row, policy_config)
    assert run.result.max_steps is not None
    try:
        found = policy_id(run.policy, run.result.max_steps)
    except ArithmeticError as error:
        raise ValueError(f"policy: its rates cannot be computed ({error})") from error
    if run.result.policy_id not in (None, found):
        raise ValueError(
            f"the policy is not the one that ran: its policy_id is {found}, the row says {run.result.policy_id}"
        )
    return StoredRun(dataclasses.replace(run.result, policy_id=found), run.policy)


def _checked_run(row: Mapping[str, Any], policy_config: Any) -> StoredRun:
    """All checks but the one that costs a look at every rate."""
    result = RunResult.from_dict(RunResult.from_dict(dict(row)).to_dict())  # what is no finite number is None
    if result.status in ("failed", "stopped"):
        raise ValueError(f"a run that {result.status} says nothing of its policy ({result.message})")
    for name in ("dataset", "model", "optimizer", "monitor", "batch_size", "max_steps", "seed"):
        if getattr(result, name) is None:
            raise ValueError(f"{name} is missing: a row must say what was trained")
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{field.name} must be text, got a zero byte in {value!r}")
        if isinstance(value, int) and not 0 <= value <= _LARGEST:
            raise ValueError(f"{field.name} must be an integer from 0 to 2**63 - 1, got {value}")
    budget = result.max_steps or 0
    if not 1 <= budget <= _LONGEST:
        raise ValueError(f"max_steps must lie in 1 to {_LONGEST}, got {budget}")
    if not result.batch_size:
        raise ValueError(f"batch_size must be at least 1, got {result.batch_size}")
    if result.steps_to_target is not None and not 0 < result.steps_to_target <= budget:
        raise ValueError(f"steps_to_target must lie in 1 to max_steps ({budget}), got {result.steps_to_target}")
    if policy_config is None:
        raise ValueError(f"its policy is missing: expected {POLICY_FILE} beside {RESULT_FILE}, or policy_config")
    try:
        return StoredRun(result, from_config(policy_config))
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"policy: {error}") from error


def _digest(run: StoredRun) -> str:
    """What identifies a run: all of its row and its policy. A field that has no value counts as absent.

    So does what format 1 does not know, which ``run_id`` covers: a run is one run in whatever format it was added.
    """
    row = run.result.to_dict()
    said = {name: value for name, value in row.items() if value not in (None, "", {}) and name not in _SINCE_FORMAT_1}
    return hashlib.sha256(_json({**said, "policy_config": to_config(run.policy)}).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# -- folders and files ----------------------------------------------------------------------------------------


def read_sources(sources: Iterable[str | Path]) -> Found:
    """Every run below the folders, and in files that ``lrbench db export`` wrote.

    Args:
        sources: Folders of runs or sweeps; ``.jsonl`` and ``.csv`` files.

    Raises:
        DatabaseError: If a source is neither, or a folder holds no run.
    """
    runs: list[StoredRun] = []
    refused: list[Refused] = []
    for source in map(Path, sources):
        if source.is_dir():
            rows = _from_folder(source)
        elif source.is_file() and source.suffix in (".jsonl", ".csv"):
            rows = _from_jsonl(source) if source.suffix == ".jsonl" else _from_csv(source)
        else:
            raise DatabaseError(f"{source}: expected a folder of runs, or a .jsonl or .csv file of `lrbench db export`")
        empty = True
        for where, row in rows:
            empty = False
            if isinstance(row, StoredRun):
                runs.append(row)
            else:
                refused.append(Refused(where, row.removeprefix(f"{where}: ")))
        if empty:
            raise DatabaseError(f"{source}: no run found; run a sweep first, see README.md")
    return Found(tuple(runs), tuple(refused))


_Rows = Iterator[tuple[str, "StoredRun | str"]]  # where it was found, and the run or why it is none


def _from_folder(folder: Path) -> _Rows:
    for path in sorted(folder.rglob(RESULT_FILE)):
        where = str(path.parent)
        try:
            row = RunResult.read(path).to_dict()
            if row["settings"] is None:
                row["settings"] = stored_settings(path.parent)
            yield where, stored_run(row, _read_policy(path.parent / POLICY_FILE))
        except ValueError as error:
            yield where, _one_line(error).removeprefix(f"{path}: ")


def _read_policy(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)  # nothing is resolved: it is data
    except Exception as error:  # of the YAML parser, of OmegaConf, of the file system
        raise ValueError(f"{POLICY_FILE} cannot be read: {_one_line(error)}") from error


def _from_jsonl(path: Path) -> _Rows:
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            yield _parsed(f"{path}:{number}", line, json.loads)


def _from_csv(path: Path) -> _Rows:
    reader = csv.DictReader(io.StringIO(_read_text(path)))
    if "policy_config" not in (reader.fieldnames or ()):
        raise DatabaseError(f"{path}: expected the columns of `lrbench db export`, policy_config among them")
    for row in reader:
        yield _parsed(f"{path}:{reader.line_num}", row, _from_cells)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatabaseError(f"{path}: expected text in UTF-8 ({error})") from error


def _parsed(where: str, raw: Any, parse: Callable[[Any], Any]) -> tuple[str, StoredRun | str]:
    try:
        row = parse(raw)
        if not isinstance(row, dict):
            raise ValueError(f"expected one JSON object, got {type(row).__name__}")
        return where, stored_run(row, row.pop("policy_config", None))
    except (ValueError, RecursionError) as error:
        return where, _one_line(error)


def _from_cells(cells: Mapping[str | None, Any]) -> dict[str, Any]:
    """The row that a line of CSV spells; an empty cell is None."""
    if None in cells or None in cells.values():
        raise ValueError("expected as many cells as there are columns")
    kinds = {**FIELD_TYPES, "policy_config": dict}
    row: dict[str, Any] = {}
    for name, cell in cells.items():
        kind = kinds.get(str(name), str)
        if cell == "":
            continue
        try:
            row[str(name)] = cell if kind is str else json.loads(cell)
        except json.JSONDecodeError as error:
            raise ValueError(f"field {name!r} must be {kind.__name__}, got {cell!r}") from error
    return row


def export(runs: Iterable[StoredRun], form: Form = "jsonl") -> str:
    """The runs as text that :func:`read_sources` reads back: JSON lines or CSV.

    Raises:
        DatabaseError: If the form is another.

    Example:
        >>> export([], "jsonl"), export([], "csv").split(",")[:3]
        ('', ['run_id', 'policy', 'status'])
    """
    if form not in ("jsonl", "csv"):
        raise DatabaseError(f"--format must be jsonl or csv, got {form!r}")
    rows = [{**run.result.to_dict(), "policy_config": to_config(run.policy)} for run in runs]
    if form == "jsonl":
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    names = [field.name for field in dataclasses.fields(RunResult)] + ["policy_config"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: value if value is None or isinstance(value, str) else json.dumps(value)
                for name, value in row.items()
            }
        )
    return text.getvalue()


# -- the database ---------------------------------------------------------------------------------------------


class PolicyDatabase:
    """Runs and their policies, kept where several programs may write at once.

    Args:
        where: Path of a SQLite file, or the URL of a database, such as ``postgresql://user@host/name``. By default the
            environment's ``LRBENCH_DB``, or ``lrbench.db`` in the working directory.
        create: Whether to make it if it is not there.

    Raises:
        DatabaseError: If it cannot be opened, or is not there and not to be made.

    Example:
        >>> import tempfile
        >>> row = {"run_id": "a1", "policy": "fix", "status": "missed", "seed": 0, "max_steps": 100, "batch_size": 64,
        ...        "dataset": "digits", "model": "mlp", "optimizer": "momentum", "monitor": "val/accuracy"}
        >>> run = stored_run(row, {"_target_": "lrbench_pl.policies.Constant", "lr": 0.1})
        >>> with PolicyDatabase(Path(tempfile.mkdtemp()) / "runs.db", create=True) as database:
        ...     database.add([run]), database.add([run]), len(database.read(dataset="digits").runs)
        (1, 0, 1)
    """

    def __init__(self, where: str | Path | None = None, create: bool = False) -> None:
        url = _url(where)
        self.name = url.database if url.drivername == "sqlite" else url.render_as_string(hide_password=True)
        if url.drivername == "sqlite" and not create and not Path(str(url.database)).is_file():
            raise MissingDatabaseError(f"no policy database at {self.name}; fill one with `lrbench db add DIR`")
        arguments = {"timeout": _SECONDS_TO_WAIT} if url.drivername == "sqlite" else {}
        try:
            self._engine = sa.create_engine(url, connect_args=arguments)
        except ImportError as error:
            hint = "; pip install 'lrbench_pl[postgresql]'" if url.drivername.startswith("postgresql") else ""
            raise DatabaseError(f"{self.name}: its driver is missing ({error.name}){hint}") from error
        except SQLAlchemyError as error:
            raise DatabaseError(f"{self.name}: {_one_line(error)}") from error
        try:
            with self._saying_what_failed():
                if not sa.inspect(self._engine).has_table(_runs.name):
                    if not create:
                        raise MissingDatabaseError(f"no runs in {self.name}; fill it with `lrbench db add DIR`")
                    self._create()
                before = self._check_format()
                if create and before < FORMAT:
                    self._upgrade()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        try:
            _metadata.create_all(self._engine)
        except SQLAlchemyError:  # another program may have been quicker
            there = sa.inspect(self._engine)
            if not all(there.has_table(table.name) for table in (_runs, _format)):
                raise

    def _check_format(self) -> int:
        """The format of the database; a later one is refused."""
        if not sa.inspect(self._engine).has_table(_format.name):
            return 1
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_format).order_by(_format.c.format.desc())).all()
        try:
            return check_format(rows[0].format, rows[0].version) if rows else 1
        except ResultError as error:
            raise DatabaseError(f"{self.name}: {error}") from None

    def _upgrade(self) -> None:
        """Bring a database to this format: a run is identified as this version identifies it."""
        self._create()
        insert = self._insert(_format).on_conflict_do_nothing(index_elements=["format"])
        with self._engine.begin() as connection:
            connection.execute(insert, {"format": FORMAT, "version": version()})
            there = {digest: number for number, digest in connection.execute(sa.select(_runs.c.id, _runs.c.digest))}
            for number, digest, result, config in connection.execute(
                sa.select(_runs.c.id, _runs.c.digest, _runs.c.result, _runs.c.policy_config)
            ).all():
                try:
                    new = _digest(_checked_run(json.loads(result), json.loads(config)))
                except (ValueError, TypeError, RecursionError):  # reading it says so
                    continue
                if new != digest and new not in there:
                    connection.execute(sa.update(_runs).where(_runs.c.id == number).values(digest=new))
                    there[new] = number

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    def __enter__(self) -> PolicyDatabase:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, runs: Iterable[StoredRun]) -> int:
        """Add the runs that are not there yet, all of them or, if that fails, none.

        Returns:
            How many were new.
        """
        if self._check_format() < FORMAT:
            with self._saying_what_failed():
                self._upgrade()
        statement = self._insert(_runs).on_conflict_do_nothing(index_elements=["digest"]).returning(_runs.c.id)
        # in one order everywhere, so that two writers of the same runs wait for each other in turn
        rows = sorted(({"digest": _digest(run), **_columns(run)} for run in runs), key=lambda row: row["digest"])
        with self._saying_what_failed(), self._engine.begin() as connection:
            return sum(len(connection.execute(statement, row).all()) for row in rows)

    def read(self, **where: str) -> Found:
        """The runs whose columns have these values, in the order in which they were added.

        Raises:
            DatabaseError: If a column is none of those that can be asked by.
        """
        for name in where:
            if name not in ASKED_BY:
                raise DatabaseError(f"runs can be asked by {', '.join(ASKED_BY)}, got {name!r}")
        query = sa.select(_runs.c.id, _runs.c.result, _runs.c.policy_config).order_by(_runs.c.id)
        for name, value in where.items():
            query = query.where(_runs.c[name] == value)
        with self._saying_what_failed(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        runs: list[StoredRun] = []
        refused: list[Refused] = []
        for number, result, config in rows:
            try:
                runs.append(_checked_run(json.loads(result), json.loads(config)))
            except (ValueError, TypeError, RecursionError) as error:
                refused.append(Refused(f"row {number} of {self.name}", _one_line(error)))
        return Found(tuple(runs), tuple(refused))

    @contextlib.contextmanager
    def _saying_what_failed(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            said = getattr(error, "orig", None) or error
            raise DatabaseError(f"{self.name}: {_one_line(said)}") from None  # its causes say less


def _url(where: str | Path | None) -> sa.URL:
    named = str(where) if where is not None else os.environ.get(ENVIRONMENT) or DEFAULT
    if "://" not in named:
        return sa.URL.create("sqlite", database=named)
    try:
        url = sa.make_url(named)
    except (SQLAlchemyError, ValueError) as error:
        raise DatabaseError(f"--db must be a path or a URL such as postgresql://user@host/name ({error})") from error
    kind = url.drivername.partition("+")[0]
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise DatabaseError(f"--db must be a SQLite file or a PostgreSQL URL, got one of {kind!r}")
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _columns(run: StoredRun) -> dict[str, Any]:
    asked_by = {name: getattr(run.result, name) for name in ASKED_BY}
    return {**asked_by, "result": _json(run.result.to_dict()), "policy_config": _json(to_config(run.policy))}
