"""The rules of the design that import-linter cannot express, checked on the source itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("backlot", "commands", "domain", "engine", "infra", "projections", "readapi", "workers")
DOMAIN_MAY_IMPORT = {"domain", "eventsourcing.domain"}
CLOCKS_AND_CHANCE = {"random", "secrets", "time", "os", "socket", "subprocess", "threading"}
CLOCK_READS = {"now", "utcnow", "today", "uuid1", "uuid4"}


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", sources("domain"), ids=lambda path: path.name)
def test_the_domain_imports_only_the_library_and_the_standard_library(path: Path) -> None:
    for module in imported(ast.parse(path.read_text())):
        allowed = module.split(".")[0] in sys.stdlib_module_names or any(
            module == name or module.startswith(f"{name}.") for name in DOMAIN_MAY_IMPORT
        )
        assert allowed, f"{path.name} imports {module}"
        assert module.split(".")[0] not in CLOCKS_AND_CHANCE, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sources("domain"), ids=lambda path: path.name)
def test_the_domain_reads_no_clock_and_throws_no_dice(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in CLOCK_READS, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_business_rules_are_not_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_why_it_exists(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"


ENDS = "infra/cancellation.py"
SIGNALS = "backlot/signals.py"
# How a stop can be lost, and the one place that may do it nevertheless.
ONLY_THERE = {
    # A task that is cancelled once may have lost that: `await cancel(task)`.
    "cancel": ENDS,
    # On Python 3.11 it loses a cancellation that arrives as its inner wait ends: `timeout`.
    "asyncio.wait_for": "",
    # Cancels its tasks once, however often it is cancelled: `together`.
    "asyncio.TaskGroup": "",
    # An exception that is raised wherever the program happens to be: `Stop`, and `run`.
    "signal.signal": SIGNALS,
    "asyncio.run": SIGNALS,
}
# No tasks: a timer of `threading`, a replay; and processes whose parent decides.
OTHERS = {
    ("infra/tasks/stopping.py", "self._timer.cancel"),
    ("projections/operating/actions.py", "replay_operations.cancel"),
    ("projections/replaying/partitions.py", "signal.signal"),
}


def calls_that_lose_stops(path: Path) -> Iterator[str]:
    file = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            for known in {name, node.func.attr} & ONLY_THERE.keys():
                if ONLY_THERE[known] != file and (file, name) not in OTHERS:
                    yield f"{file}:{node.lineno} {name}"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_stop_is_asked_for_in_one_place(path: Path) -> None:
    assert list(calls_that_lose_stops(path)) == []


def test_a_call_that_may_lose_a_stop_is_found() -> None:
    found = {call.split()[1] for call in calls_that_lose_stops(ROOT / "tests/unit/test_leases.py")}
    assert "task.cancel" in found


# The embedded server is asked whether it runs, before there is anything to say to a session.
MAY_CONNECT = {"infra/connecting.py", "infra/postgres.py"}
CONNECTS = {
    "psycopg.connect",
    "Connection.connect",
    "AsyncConnection.connect",
    "ConnectionPool",
    "AsyncConnectionPool",
}


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: path.name)
def test_connections_to_postgresql_are_made_in_one_place(path: Path) -> None:
    if str(path.relative_to(ROOT)) in MAY_CONNECT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CONNECTS, f"{path.name}:{node.lineno}"


NAMES_THE_LOG = "infra/event_store.py"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_table_of_the_log_is_named_in_one_place(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode()
            named = re.search(r"\bbacklot_events\b", text) is not None
            assert not named or str(path.relative_to(ROOT)) == NAMES_THE_LOG, node.lineno


# Whatever is not made from files: the records of these, the shape that decides which are applied,
# what is as wide as the model that is configured, and what is only there while a check runs.
MAKES_TABLES = {
    "engine/migrations.py",
    "projections/analytics/migrating.py",
    "projections/analytics/rebuilding/aside.py",
    "projections/analytics/rebuilding/checking_sql.py",
    "projections/recommendations/embedding_table.py",
}


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_made_from_files_or_with_a_copy(path: Path) -> None:
    if str(path.relative_to(ROOT)) in MAKES_TABLES:
        return
    made = re.findall(r"CREATE (?:TEMPORARY )?TABLE (?:IF NOT EXISTS )?(\S+)", path.read_text())
    assert [name for name in made if not name.strip("{").startswith("schema}")] == []
