"""The lists of who was forgotten, outside the database: what is changed in one shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from engine.seals.forgotten_list import ForgottenList, person_digest, record_forgotten
from engine.seals.outside import Outside
from engine.seals.places import AnchorsUnusable, LineFile
from engine.seals.proofs import Proofs

AT = datetime(2026, 11, 30, 12, 0, 0, 123456, tzinfo=UTC)
ANN, BOB, EVE = ("ann", "bob", "eve")


def list_in(path: Path) -> ForgottenList:
    return ForgottenList(LineFile(path))


def filled(path: Path, *names: str) -> ForgottenList:
    found = list_in(path)
    for number, name in enumerate(names):
        assert found.add({person_digest(name): AT + timedelta(hours=number)}) == 1
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "forgotten.jsonl"


def test_who_is_written_down_is_known_to_whoever_reads_later(path: Path) -> None:
    filled(path, ANN, BOB)
    expected = {person_digest(ANN): AT, person_digest(BOB): AT + timedelta(hours=1)}
    assert list_in(path).read() == expected
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_is_named_in_it(path: Path) -> None:
    filled(path, ANN)
    assert ANN.encode() not in path.read_bytes()


def test_twice_is_once(path: Path) -> None:
    kept = filled(path, ANN)
    assert kept.add({person_digest(ANN): AT + timedelta(days=1)}) == 0
    assert kept.read() == {person_digest(ANN): AT}


@pytest.mark.parametrize("line", [0, 1])
def test_an_entry_that_was_removed_shows(path: Path, line: int) -> None:
    kept = filled(path, ANN, BOB, EVE)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[line]
    path.write_bytes(b"".join(lines))
    with pytest.raises(AnchorsUnusable, match=f"line {line + 1}: .* does not follow"):
        kept.read()
    with pytest.raises(AnchorsUnusable, match="does not follow"):
        kept.add({person_digest("zoe"): AT})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("person", person_digest("zoe").hex()),
        ("at", "2026-12-24T12:00:00Z"),
        ("number", 4),
        ("previous", "00" * 32),
        ("hash", "00" * 32),
    ],
)
def test_an_entry_that_was_changed_shows(path: Path, name: str, value: object) -> None:
    kept = filled(path, ANN, BOB, EVE)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = orjson.dumps({**orjson.loads(lines[1]), name: value}) + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(AnchorsUnusable, match=r"line [23]: .* does not follow"):
        kept.read()


@pytest.mark.parametrize("line", [b"[]\n", b"nothing\n", b'{"number":1}\n'])
def test_what_is_no_entry_is_told(path: Path, line: bytes) -> None:
    path.write_bytes(line)
    with pytest.raises(AnchorsUnusable, match="line 1 is no entry"):
        list_in(path).read()


def test_what_a_crash_left_torn_counts_as_not_written(path: Path) -> None:
    kept = filled(path, ANN, BOB)
    path.write_bytes(path.read_bytes()[:-5])
    assert kept.read() == {person_digest(ANN): AT}
    assert kept.add({person_digest(BOB): AT}) == 1
    assert list_in(path).read() == {person_digest(ANN): AT, person_digest(BOB): AT}


def test_every_place_is_told_before_it_returns(tmp_path: Path) -> None:
    near, far = tmp_path / "near", tmp_path / "nowhere" / "far"
    proofs = Proofs(outside=Outside(forgotten=[list_in(near), list_in(far)]))
    with pytest.raises(AnchorsUnusable, match="can't be written"):
        record_forgotten(proofs, ANN, AT)
    far.parent.mkdir()
    record_forgotten(proofs, ANN, AT)
    record_forgotten(proofs, ANN, AT)
    assert [list_in(path).read() for path in (near, far)] == [{person_digest(ANN): AT}] * 2
