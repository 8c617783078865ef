"""The rules of the design that import-linter cannot express, checked on the source itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import structure

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("backlot", "commands", "domain", "engine", "infra", "projections", "readapi", "web"),
    "workers",
)
DOMAIN_MAY_IMPORT = {"domain", "eventsourcing.domain"}
CLOCKS_AND_CHANCE = {"random", "secrets", "time", "os", "socket", "subprocess", "threading"}
CLOCK_READS = {"now", "utcnow", "today", "uuid1", "uuid4"}


def sources(*packages: str) -> dict[str, ast.Module]:
    """The syntax tree of each file of these packages, by its path in the project."""
    paths = sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): structure.parsed(path) for path in paths}


def nodes(*packages: str) -> Iterator[tuple[str, ast.AST]]:
    """Each node of each file of these packages, with the file's path."""
    for file in sources(*packages):
        for node in structure.nodes_of(ROOT / file):
            yield file, node


def calls(*packages: str) -> Iterator[tuple[str, ast.Call]]:
    for file, node in nodes(*packages):
        if isinstance(node, ast.Call):
            yield f"{file}:{node.lineno}", node


def imported(file: str) -> Iterator[str]:
    for node in structure.nodes_of(ROOT / file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def may_be_imported_by_the_domain(module: str) -> bool:
    top = module.split(".", maxsplit=1)[0]
    allowed = top in sys.stdlib_module_names or any(
        module == name or module.startswith(f"{name}.") for name in DOMAIN_MAY_IMPORT
    )
    return allowed and top not in CLOCKS_AND_CHANCE


def test_every_package_is_looked_at() -> None:
    assert all(sources(package) for package in PACKAGES)


def test_the_domain_imports_only_the_library_and_the_standard_library() -> None:
    assert [
        f"{file} imports {module}"
        for file in sources("domain")
        for module in imported(file)
        if not may_be_imported_by_the_domain(module)
    ] == []


def test_the_domain_reads_no_clock_and_throws_no_dice() -> None:
    assert [
        place
        for place, call in calls("domain")
        if isinstance(call.func, ast.Attribute) and call.func.attr in CLOCK_READS
    ] == []


def test_business_rules_are_not_asserts() -> None:
    found = [
        f"{file}:{node.lineno}" for file, node in nodes(*PACKAGES) if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_a_module_says_why_it_exists() -> None:
    modules = sources(*PACKAGES).items()
    assert [file for file, tree in modules if tree.body and not ast.get_docstring(tree)] == []


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
# No tasks: a timer of the loop, one of `threading`, a replay; and processes whose parent decides.
OTHERS = {
    ("infra/batcher.py", "self._gathering.cancel"),
    ("infra/tasks/middleware.py", "self._timer.cancel"),
    ("workers/operations/actions.py", "requests.cancel"),
    ("engine/replay/build.py", "signal.signal"),
}


def calls_that_lose_stops(file: str) -> Iterator[str]:
    for node in structure.nodes_of(ROOT / file):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            for known in {name, node.func.attr} & ONLY_THERE.keys():
                if ONLY_THERE[known] != file and (file, name) not in OTHERS:
                    yield f"{file}:{node.lineno} {name}"


def test_a_stop_is_asked_for_in_one_place() -> None:
    assert [call for file in sources(*PACKAGES) for call in calls_that_lose_stops(file)] == []


def test_a_call_that_may_lose_a_stop_is_found() -> None:
    file = "tests/unit/test_leases.py"
    found = {call.split()[1] for call in calls_that_lose_stops(file)}
    assert "task.cancel" in found


# The embedded server is asked whether it runs, before there is anything to say to a session.
MAY_CONNECT = {"infra/postgres/connection.py", "infra/postgres/server.py"}
CONNECTS = {
    "psycopg.connect",
    "Connection.connect",
    "AsyncConnection.connect",
    "ConnectionPool",
    "AsyncConnectionPool",
}


def test_connections_to_postgresql_are_made_in_one_place() -> None:
    found = [place for place, call in calls(*PACKAGES) if ast.unparse(call.func) in CONNECTS]
    assert [place for place in found if place.partition(":")[0] not in MAY_CONNECT] == []


NAMES_THE_LOG = "engine/event_store.py"


def test_the_table_of_the_log_is_named_in_one_place() -> None:
    found = {
        file
        for file, node in nodes(*PACKAGES)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str | bytes)
        and re.search(r"\bbacklot_events\b", str(node.value))
    }
    assert found == {NAMES_THE_LOG}


# Whatever is not made from files: the records of these, the shape that decides which are applied,
# what is as wide as the model that is configured, and what is only there while a check runs.
MAKES_TABLES = {
    "engine/installation.py",
    "projections/analytics/schema.py",
    "projections/analytics/staging_tables.py",
    "projections/analytics/reconciliation.py",
    "projections/feedback/rebuild.py",
    "projections/recommendations/embeddings.py",
}


def test_tables_are_made_from_files_or_with_a_copy() -> None:
    made = [
        (file, name)
        for file in sources(*PACKAGES)
        for name in re.findall(
            r"CREATE (?:TEMPORARY )?TABLE (?:IF NOT EXISTS )?(\S+)", (ROOT / file).read_text()
        )
    ]
    assert [
        (file, name)
        for file, name in made
        if file not in MAKES_TABLES and not name.strip("{").startswith("schema}")
    ] == []


# Names of the HTTP contract, of commands and of events that say the same thing on purpose: OpenAPI,
# metrics and topics fix them.
NAMED_TWICE = {"Comment", "CommentDeleted", "CompleteUpload", "Replay", "StartUpload"}


def test_a_class_name_means_one_thing() -> None:
    assert set(structure.classes_that_occur_twice(structure.modules())) <= NAMED_TWICE


def test_a_file_is_one_thing_that_can_be_read_at_once() -> None:
    found = structure.modules().values()
    assert [module.name for module in found if module.lines > 500] == []
