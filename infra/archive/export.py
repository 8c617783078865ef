"""Exports the log to a file that appears when it is whole; a run that was cut off is continued."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.archive.plan import (
    ExportFormat,
    ExportRefused,
    ExportRequest,
    Plan,
    make_plan,
    plan_from_json,
)
from infra.archive.writing import Item, LineWriter, Writer
from infra.objects.disk import sync_folder
from infra.seals.chain import StoredRow
from infra.seals.tables import seals
from infra.seals.verify import rows_between

ITEMS_AT_ONCE = 2_000

Begun = Callable[[Plan, int], None]
"""Is told the plan and how many of its events an earlier run has written."""


def export_log(
    conn: Connection[TupleRow],
    path: Path,
    wish: ExportRequest,
    *,
    on_begun: Begun = lambda plan, done: None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> Plan:
    """Write what is wanted of the log to `path`, which Parquet makes a folder.

    Until it is whole it is called `….partial`, and `….partial.json` keeps what it will contain:
    the log as it was when the export began, however long it takes. Raises ExportRefused, OSError
    and psycopg.Error.
    """
    partial = path.with_name(f"{path.name}.partial")
    with _planned(conn, path, wish) as plan:
        writer = _writer(partial, plan)
        try:
            start = writer.resume()
            on_begun(plan, start - plan.first)
            for items in _batches(_items(conn, plan, start)):
                writer.write(items)
                on_progress(sum(isinstance(item, StoredRow) for item in items))
            writer.finish()
        finally:
            writer.close()
        partial.rename(path)
        sync_folder(path.parent)
    return plan


def _writer(partial: Path, plan: Plan) -> Writer:
    if plan.format is ExportFormat.PARQUET:
        from infra.archive.parquet import ParquetWriter

        return ParquetWriter(partial, plan)
    return LineWriter(partial, plan)


@contextmanager
def _planned(conn: Connection[TupleRow], path: Path, wish: ExportRequest) -> Iterator[Plan]:
    """The plan that was begun, or a new one, for this process alone; removed once fulfilled."""
    kept = path.with_name(f"{path.name}.partial.json")
    if path.exists():
        # Else a run that was killed at the very end would leave its plan behind.
        kept.unlink(missing_ok=True)
        raise ExportRefused(f"{path} is there already: give another name or remove it")
    with kept.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportRefused(f"{path} is just being written by another process") from None
        file.seek(0)
        plan = _begun(file.read())
        if plan is None:
            plan = make_plan(conn, wish)
            file.truncate(0)
            file.write(plan.to_json())
            file.flush()
            os.fsync(file.fileno())
        elif not plan.fulfils(wish):
            raise ExportRefused(
                f"{path}.partial was begun as {plan.format} with payload {plan.payload}, "
                f"positions {plan.first} to {plan.last}: say the same, or remove it"
            )
        yield plan
        kept.unlink()


def _begun(text: bytes) -> Plan | None:
    try:
        return plan_from_json(text)
    except (ValueError, KeyError, TypeError):
        # Nothing yet, or torn by a crash: nothing was written by it either.
        return None


def _items(conn: Connection[TupleRow], plan: Plan, start: int) -> Iterator[Item]:
    """The events from `start` on, each seal before the first of its events here."""
    wanted = plan.provable and plan.last_seal > 0
    chain = seals(conn, plan.first_seal - 1, plan.last_seal) if wanted else iter(())
    seal = next(chain, None)
    while seal is not None and start > max(seal.first, plan.first):
        seal = next(chain, None)
    for row in rows_between(conn, start - 1, plan.last):
        while seal is not None and row.position >= seal.first:
            yield seal
            seal = next(chain, None)
        yield row
    while seal is not None:
        yield seal
        seal = next(chain, None)


def _batches(items: Iterator[Item]) -> Iterator[Sequence[Item]]:
    while batch := list(islice(items, ITEMS_AT_ONCE)):
        yield batch
