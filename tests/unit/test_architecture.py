"""The rules of the design that import-linter cannot express, checked on the source itself."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("backlot", "commands", "domain", "infra", "projections", "readapi", "workers")
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
