"""The registry of advisory locks: no number is used twice, and none stands anywhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from infra.advisory_locks import (
    AdvisoryLock,
    Lock,
    LockClass,
    copy_lock,
    job_lock,
    operation_lock,
    replay_lock,
)
from tests.structure import nodes_of

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "infra" / "advisory_locks.py"
PACKAGES = ("backlot", "commands", "domain", "engine", "infra", "projections", "readapi", "workers")
CLASSES = {int(each) for each in LockClass}
# A lock that is taken in SQL, with a number written out.
IN_SQL = re.compile(r"pg_(?:try_)?advisory\w*\(\s*\d+")
FIXED = [each for each in vars(Lock).values() if isinstance(each, AdvisoryLock)]
JOBS = (
    "consumer analytics",
    "consumer analytics_videos",
    "consumer recommendations",
    "consumer speech",
    "consumer translation",
    "embedding",
    "recommendations in advance",
    "relay",
    "translation sweep",
)
# What the last release takes: a process of it may run beside one of this.
RELEASED = {
    Lock.PROJECTION_TABLES: (0x70726F6A, 0),
    Lock.LIKES_RECONCILIATION: (0x6C696B65, 1),
    Lock.SEALING: (0x7365616C, 1),
    Lock.TELEMETRY: (7104878, 2),
    Lock.ANALYTICS_ROWS: (7104878, 5),
    Lock.TRENDING_SETTLEMENT: (7104878, 6),
    Lock.ANALYTICS_REFRESH: (7104878, 7),
    Lock.ANALYTICS_PRUNING: (7104878, 8),
    Lock.RECOMMENDATION_ROWS: (7104878, 9),
    Lock.MIGRATION: (7104878, 10),
    job_lock("relay"): (0x776F726B, 0x5D3AE2B9),
    copy_lock("likes"): (0x70726F6A, 0x09CA4E7E),
    replay_lock(7): (0x70726F6A, 0x30BAFF60),
    operation_lock(UUID(int=2**100 + 5)): (0x6F706572, 5),
}


def numbers_in(path: Path) -> Iterator[str]:
    for node in nodes_of(path):
        if not isinstance(node, ast.Constant):
            continue
        text = node.value.decode() if isinstance(node.value, bytes) else node.value
        named = isinstance(text, str) and IN_SQL.search(text)
        if named or (isinstance(node.value, int) and node.value in CLASSES):
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_two_locks_are_the_same() -> None:
    assert len(FIXED) == len(set(FIXED)) == 11
    # Members of an enum that are equal are one member with two names.
    assert list(LockClass.__members__.values()) == list(LockClass)
    assert len({job_lock(job) for job in JOBS}) == len(JOBS)
    copies = {copy_lock(name) for name in ("likes", "likes__next", "catalog", "comments")}
    assert len({*copies, Lock.PROJECTION_TABLES}) == 5


def test_every_lock_is_a_pair_of_positive_int4() -> None:
    for class_id, key in [*FIXED, copy_lock("likes"), job_lock("relay")]:
        assert 0 < class_id < 2**31
        assert 0 <= key < 2**31


def test_no_other_module_holds_the_number_of_a_lock() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = [place for path in files if path != REGISTRY for place in numbers_in(path)]
    assert found == []


@pytest.mark.parametrize("taken", RELEASED, ids=str)
def test_a_lock_is_that_of_the_last_release(taken: AdvisoryLock) -> None:
    assert taken == RELEASED[taken]
