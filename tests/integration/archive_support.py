"""What tests of the archive share: a sealed and signed log, its export, ways to look at both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.archive.lines import ExportRequest
from engine.archive.transfer import export_log, import_log
from engine.archive.verification import verify_export
from engine.seals.chain import connect
from engine.seals.proofs import Proofs, PublicKeys
from engine.seals.report import Fault, Report
from tests.integration.event_log import rows
from tests.integration.seal_support import TOPICS, install, make_log, new_key, seal_all

KEY = new_key()
SEALED, EVENTS = 60, 64


def export(
    database_url: str, path: Path, wish: ExportRequest | None = None, **options: Any
) -> None:
    with connect(database_url, "test") as conn:
        export_log(conn, path, wish or ExportRequest(), **options)


def check(path: Path, public_keys: PublicKeys | None = None) -> Report:
    return verify_export(path, Proofs(public_keys), known_topics=TOPICS)


def import_into(database_url: str, path: Path, public_keys: PublicKeys | None = None) -> Report:
    install(database_url)
    with connect(database_url, "test") as conn:
        return import_log(conn, path, Proofs(public_keys), known_topics=TOPICS)


def whole_table(database_url: str, table: str) -> list[tuple[object, ...]]:
    return rows(database_url, f"SELECT * FROM {table} ORDER BY 1, 2, 3")


def named(report: Report) -> tuple[str, int | None]:
    fault: Fault | None = report.fault
    assert fault is not None
    return fault.kind.value, fault.position


def make_signed_log(database_url: str) -> None:
    """64 events, of which 60 are sealed and signed."""
    make_log(database_url, SEALED)
    seal_all(database_url, key=KEY)
    make_log(database_url, EVENTS - SEALED)
