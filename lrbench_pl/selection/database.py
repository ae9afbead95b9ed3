"""The policy database: runs of many sweeps with their policies, in SQLite or PostgreSQL.

It can be built again from the folders of the runs at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from lrbench_pl.files import FORMAT, ResultError, check_format, version
from lrbench_pl.policies import to_config
from lrbench_pl.reading import parse_json
from lrbench_pl.selection.records import Found, Refused, StoredRun, checked_run, digest, one_line, to_json
from lrbench_pl.words import clean

ENVIRONMENT = "LRBENCH_DB"
DEFAULT = "lrbench.db"

_TIMEOUT_S = 60  # waiting for other writers of a SQLite file

_metadata = sa.MetaData()
# The result as JSON is the source of truth, so that a new field does not change the schema. Columns are for queries.
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
# One row with the format of the database. A database without this table has format 1.
_format = sa.Table(
    "lrbench_format",
    _metadata,
    sa.Column("format", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Text, nullable=False),
)
FILTERS = ("run_id", "dataset", "model", "optimizer", "monitor", "policy", "policy_id", "status")


class DatabaseError(ValueError):
    """Raised if a database cannot be opened or queried; the message is one line."""


class MissingDatabaseError(DatabaseError):
    """Raised if the database does not exist."""


class PolicyDatabase:
    """Finished runs with their policies; several programs may write at once.

    Args:
        where: Path of a SQLite file, or the URL of a database, such as ``postgresql://user@host/name``. By default the
            environment's ``LRBENCH_DB``, or ``lrbench.db`` in the working directory.
        create: Whether to create it if it does not exist.

    Raises:
        DatabaseError: If it cannot be opened, or does not exist and ``create`` is false.

    Example:
        >>> import tempfile
        >>> from lrbench_pl.selection.records import stored_run
        >>> result = {"run_id": "a1", "policy": "fix", "status": "missed", "seed": 0, "max_steps": 100,
        ...     "batch_size": 64, "dataset": "digits", "model": "mlp", "optimizer": "momentum",
        ...     "monitor": "val/accuracy"}
        >>> run = stored_run(result, {"_target_": "lrbench_pl.policies.Constant", "lr": 0.1})
        >>> with PolicyDatabase(Path(tempfile.mkdtemp()) / "runs.db", create=True) as database:
        ...     database.add([run]), database.add([run]), len(database.read(dataset="digits").runs)
        (1, 0, 1)
    """

    def __init__(self, where: str | Path | None = None, create: bool = False) -> None:
        url = _url(where)
        shown = str(url.database) if url.drivername == "sqlite" else url.render_as_string(hide_password=True)
        self.name = clean(shown)
        if url.drivername == "sqlite" and not create and not Path(str(url.database)).is_file():
            raise MissingDatabaseError(f"no policy database at {self.name}; create one with `lrbench db add DIR`")
        self._engine = self._connect(url)
        try:
            self._open(create)
        except BaseException:
            self.close()
            raise

    def _connect(self, url: sa.URL) -> sa.Engine:
        arguments = {"timeout": _TIMEOUT_S} if url.drivername == "sqlite" else {}
        try:
            return sa.create_engine(url, connect_args=arguments)
        except ImportError as error:
            hint = "; pip install 'lrbench_pl[postgresql]'" if url.drivername.startswith("postgresql") else ""
            raise DatabaseError(f"{self.name}: its driver {error.name} is not installed{hint}") from error
        except SQLAlchemyError as error:
            raise DatabaseError(f"{self.name}: {one_line(error)}") from error

    def _open(self, create: bool) -> None:
        """Check the format; create or upgrade the tables if ``create`` is true."""
        with self._one_line_errors():
            if not sa.inspect(self._engine).has_table(_runs.name):
                if not create:
                    raise MissingDatabaseError(f"no runs in {self.name}; add some with `lrbench db add DIR`")
                self._create()
            self._check_schema()
            if self._check_format() < FORMAT and create:
                self._upgrade()

    def _create(self) -> None:
        try:
            _metadata.create_all(self._engine)
        except SQLAlchemyError:  # another program may have created them at the same time
            existing = sa.inspect(self._engine)
            if not all(existing.has_table(table.name) for table in (_runs, _format)):
                raise

    def _check_schema(self) -> None:
        """Refuse tables of another program that have the names of ours."""
        inspector = sa.inspect(self._engine)
        for table in (_runs, _format):
            if not inspector.has_table(table.name):
                continue
            found = {column["name"] for column in inspector.get_columns(table.name)}
            if missing := [column.name for column in table.columns if column.name not in found]:
                raise DatabaseError(
                    f"{self.name}: expected a policy database, got a table {table.name} of another schema, without "
                    f"{', '.join(missing)}; give another database"
                )

    def _check_format(self) -> int:
        """Return the format of the database; refuse a later one."""
        if not sa.inspect(self._engine).has_table(_format.name):
            return 1
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_format).order_by(_format.c.format.desc())).all()
        try:
            return check_format(rows[0].format, rows[0].version) if rows else 1
        except ResultError as error:
            raise DatabaseError(f"{self.name}: {error}") from None

    def _upgrade(self) -> None:
        """Upgrade the database to this format: recompute the identity of each run."""
        self._create()
        insert = self._insert(_format).on_conflict_do_nothing(index_elements=["format"])
        with self._engine.begin() as connection:
            connection.execute(insert, {"format": FORMAT, "version": version()})
            numbers = {known: number for number, known in connection.execute(sa.select(_runs.c.id, _runs.c.digest))}
            for number, known, result, config in connection.execute(
                sa.select(_runs.c.id, _runs.c.digest, _runs.c.result, _runs.c.policy_config)
            ).all():
                try:
                    new = digest(checked_run(parse_json(result), parse_json(config)))
                except (ValueError, TypeError, RecursionError):  # refused when it is read
                    continue
                if new != known and new not in numbers:
                    connection.execute(sa.update(_runs).where(_runs.c.id == number).values(digest=new))
                    numbers[new] = number

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    def __enter__(self) -> PolicyDatabase:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def add(self, runs: Iterable[StoredRun]) -> int:
        """Add the runs that are not stored yet, in one transaction.

        Returns:
            The number of new runs.
        """
        if self._check_format() < FORMAT:
            with self._one_line_errors():
                self._upgrade()
        statement = self._insert(_runs).on_conflict_do_nothing(index_elements=["digest"]).returning(_runs.c.id)
        # sorted, so that two writers of the same runs do not deadlock
        rows = sorted(({"digest": digest(run), **_columns(run)} for run in runs), key=lambda row: row["digest"])
        with self._one_line_errors(), self._engine.begin() as connection:
            return sum(len(connection.execute(statement, row).all()) for row in rows)

    def read(self, **where: str) -> Found:
        """Return the runs whose columns have these values, in the order they were added.

        Raises:
            DatabaseError: If a column cannot be filtered by.
        """
        for name in where:
            if name not in FILTERS:
                raise DatabaseError(f"expected a filter by one of {', '.join(FILTERS)}, got {name!r}")
        query = sa.select(_runs.c.id, _runs.c.result, _runs.c.policy_config).order_by(_runs.c.id)
        for name, value in where.items():
            query = query.where(_runs.c[name] == value)
        with self._one_line_errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        runs: list[StoredRun] = []
        refused: list[Refused] = []
        for number, result, config in rows:
            try:
                runs.append(checked_run(parse_json(result), parse_json(config)))
            except (ValueError, TypeError, RecursionError) as error:
                refused.append(Refused(f"row {number} of {self.name}", one_line(error)))
        return Found(tuple(runs), tuple(refused))

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Raise errors of the database with a message of one line."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise DatabaseError(f"{self.name}: {one_line(cause)}") from None


def _url(where: str | Path | None) -> sa.URL:
    given = str(where) if where is not None else os.environ.get(ENVIRONMENT) or DEFAULT
    if "://" not in given:
        return sa.URL.create("sqlite", database=given)
    try:
        url = sa.make_url(given)
    except (SQLAlchemyError, ValueError) as error:
        raise DatabaseError(
            f"--db must be a path or a URL such as postgresql://user@host/name ({one_line(error)})"
        ) from error
    kind = url.drivername.partition("+")[0]
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise DatabaseError(f"--db must be a SQLite file or a PostgreSQL URL, got one of {kind!r}")
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _columns(run: StoredRun) -> dict[str, Any]:
    filters = {name: getattr(run.result, name) for name in FILTERS}
    return {**filters, "result": to_json(run.result.to_dict()), "policy_config": to_json(to_config(run.policy))}
