"""Whatever is done to an export is named, down to a byte, without a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import psycopg
import pytest

from engine.archive.verification import verify_export
from engine.seals.anchors import FileAnchors
from engine.seals.proofs import Proofs
from engine.seals.report import Report
from tests.integration.archive_support import (
    EVENTS,
    SEALED,
    check,
    export,
    make_signed_log,
    named,
)
from tests.integration.seal_support import TOPICS, anchored, seal_all, seal_anew, verify
from tests.support import DatabaseWith


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    with database_with(make_signed_log) as url:
        yield url


@pytest.fixture
def exported(log_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    export(log_url, path)
    return path


def tampered(path: Path, change: Callable[[list[bytes]], object]) -> Report:
    """The check of the file after its lines were changed; event N is line index(N)."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))
    return check(path)


def index(position: int) -> int:
    """The line of an event: after the header, the seals before it, and the other events."""
    return position + min((position - 1) // 10 + 1, SEALED // 10)


def swap(lines: list[bytes], one: int, other: int) -> None:
    """Exchange two events but for their positions."""
    first, second = orjson.loads(lines[index(one)]), orjson.loads(lines[index(other)])
    first["position"], second["position"] = other, one
    lines[index(one)] = orjson.dumps(second) + b"\n"
    lines[index(other)] = orjson.dumps(first) + b"\n"


def replace(lines: list[bytes], position: int, old: bytes, new: bytes) -> None:
    changed = lines[index(position)].replace(old, new, 1)
    assert changed != lines[index(position)]
    lines[index(position)] = changed


def insert(lines: list[bytes], after: int, position: int) -> None:
    said = orjson.loads(lines[index(after)])
    said |= {"position": position, "streamId": "00000000-0000-4000-8000-00000000bad0", "version": 1}
    lines.insert(index(after) + 1, orjson.dumps(said) + b"\n")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda at: replace(at, 33, b'"version":', b'"version":9'), ("altered", 33)),
        (lambda at: replace(at, 33, b'"topic":"', b'"topic":"x'), ("altered", 33)),
        (lambda at: replace(at, 33, b'"state":"{', b'"state":" {'), ("altered", 33)),
        (lambda at: replace(at, 33, b'"actor":"', b'"actor":"x'), ("altered", 33)),
        (lambda at: replace(at, 33, b"}\n", b"}\x00\n"), ("altered", 33)),
        (lambda at: replace(at, 63, b"}\n", b"}]\n"), ("altered", 63)),
        (lambda at: at.pop(index(33)), ("missing", 33)),
        (lambda at: at.pop(index(1)), ("missing", 1)),
        (lambda at: at.pop(index(62)), ("missing", 62)),
        (lambda at: at.pop(), ("missing", EVENTS)),
        (lambda at: swap(at, 33, 37), ("altered", 33)),
        (lambda at: swap(at, 12, 57), ("altered", 12)),
        (lambda at: insert(at, 33, 33), ("added", 33)),
        (lambda at: insert(at, 33, 12), ("added", 12)),
        (lambda at: insert(at, EVENTS, EVENTS + 100), ("added", EVENTS + 100)),
        (lambda at: insert(at, EVENTS, EVENTS + 1), ("added", EVENTS + 1)),
        (lambda at: at.pop(1), ("seal-missing", None)),
        (lambda at: at.pop(index(11) - 1), ("seal-missing", 11)),
        (lambda at: at.__delitem__(slice(index(51) - 1, None)), ("missing", 51)),
    ],
)
def test_whatever_is_done_to_an_export_is_named(
    exported: Path, change: Callable[[list[bytes]], object], fault: tuple[str, int | None]
) -> None:
    assert named(tampered(exported, change)) == fault


def test_a_seal_altered_in_an_export_is_named(exported: Path) -> None:
    def change(lines: list[bytes]) -> None:
        at = index(21) - 1
        lines[at] = lines[at].replace(b'"hash":"', b'"hash":"00', 1)

    report = tampered(exported, change)
    assert report.fault is not None
    assert (report.fault.kind, report.fault.seal) == ("seal-altered", 3)


def test_every_byte_of_an_events_line_counts(exported: Path) -> None:
    content = exported.read_bytes()
    line = content.splitlines(keepends=True)[index(17)]
    start = content.index(line)
    for at in range(start, start + len(line) - 1, 7):
        altered = bytearray(content)
        altered[at] ^= 1
        exported.write_bytes(altered)
        assert named(check(exported)) == ("altered", 17), at - start


def test_anchors_find_a_chain_written_anew(log_url: str, tmp_path: Path) -> None:
    anchors = FileAnchors(tmp_path / "anchors.jsonl")
    seal_all(log_url, anchors=[anchors])
    with psycopg.connect(log_url, autocommit=True) as conn:
        conn.execute("UPDATE backlot_events SET state = 'x' WHERE notification_id = 30")
    seal_anew(log_url)
    export(log_url, tmp_path / "forged.jsonl")
    assert check(tmp_path / "forged.jsonl").ok
    known = Proofs(outside=anchored(anchors.path))
    report = verify_export(tmp_path / "forged.jsonl", known, known_topics=TOPICS)
    assert named(report) == ("anchor-differs", 21)
    assert named(verify(log_url, proofs=known)) == ("anchor-differs", 21)
