"""The reference pages name everything that the code has, and nothing that it has not.

That every setting stands in `.env.example` is checked where settings are tested.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from uuid import UUID

import pytest

from backlot.http import ApiPart
from domain.model import Aggregate, Personal
from engine.log import payload_fields, topics_of
from infra import metrics
from infra.http.problems import TITLES
from infra.objects.routes import PROBLEMS
from tests.structure import nodes_of, parsed
from tests.support import aggregates
from tests.unit.unstarted import described

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PROBLEM_MAKERS = {"Problem", "_refusal"}
TYPES: dict[Any, str] = {
    str: "string",
    str | None: "string?",
    int: "integer",
    bool: "boolean",
    float: "number",
    float | None: "number?",
    UUID: "UUID",
    UUID | None: "UUID?",
    datetime: "time",
    dict[str, object]: "object",
    dict[str, int]: "object",
    list[str]: "list",
    list[int] | None: "list?",
}

Fields = dict[str, tuple[str, str]]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(text: str) -> Fields:
    """The fields that a piece of docs/events.md names: type, and whom each is about or ''."""
    found = re.findall(r"^\| `(\w+)` \| ([\w?]+) \| (?:`(\w+)`)? ?\|", text, re.MULTILINE)
    return {name: (kind, about) for name, kind, about in found}


def documented() -> dict[str, Fields]:
    """By topic: the event's fields, those that it shares with others included."""
    everywhere, *chapters = re.split(r"^## ", page("events.md"), flags=re.MULTILINE)[1:]
    found = {}
    for chapter in chapters:
        shared, *events = re.split(r"^### `", chapter, flags=re.MULTILINE)
        for event in events:
            found[event.partition("`")[0]] = rows(everywhere) | rows(shared) | rows(event)
    return found


def declared(event: type[Aggregate.Event]) -> Fields:
    names = payload_fields(event)
    hints = get_type_hints(event, include_extras=True)
    return {field.name: _told(hints[field.name]) for field in fields(event) if field.name in names}


def _told(hint: Any) -> tuple[str, str]:
    if get_origin(hint) is not Annotated:
        return TYPES[hint], ""
    plain, *marks = get_args(hint)
    return TYPES[plain], next(mark.subject for mark in marks if isinstance(mark, Personal))


def test_every_event_is_described_field_by_field() -> None:
    events = [event for aggregate in aggregates() for event in aggregate.events()]
    assert documented() == {event.TOPIC: declared(event) for event in events}
    for topic in (topic for event in events for topic in topics_of(event)):
        assert f"`{topic}`" in page("events.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(path: Path) -> None:
    text = path.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    beside = {link for link in links if link and not link.startswith(("http:", "https:"))}
    tests = set(re.findall(r"`(tests/[\w/.]+)`", text))
    assert [link for link in beside if not (path.parent / link).exists()] == []
    assert [name for name in tests if not (ROOT / name).exists()] == []


@pytest.fixture
def paths() -> dict[str, Any]:
    """The paths of the OpenAPI document."""
    found: dict[str, Any] = described(ApiPart.ALL)["paths"]
    return found


def test_every_call_is_described(paths: dict[str, Any]) -> None:
    calls = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)`", page("api.md"), re.MULTILINE)) == calls


def slugs_in_code() -> Iterator[tuple[str, int]]:
    """Every problem type that the source names, with its status."""
    yield from ((slug, status) for status, (slug, _) in TITLES.items())
    yield from ((slug, status) for status, slug in PROBLEMS.values())
    for package in ("commands", "readapi", "engine", "infra", "backlot"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            if not any(f"{maker}(" in text for maker in PROBLEM_MAKERS):
                continue
            for node in nodes_of(path):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in PROBLEM_MAKERS:
                    yield from _slug(node)


def _slug(call: ast.Call) -> Iterator[tuple[str, int]]:
    match call.args:
        case [ast.Constant(value=int(status)), ast.Constant(value=str(slug)), *_]:
            yield slug, status


def test_every_problem_type_is_described() -> None:
    row = r"^\| `([a-z0-9-]+)` \| ([0-9]{3}(?:, [0-9]{3})*) \|"
    told = re.findall(row, page("api.md"), re.MULTILINE)
    found = {(slug, int(status)) for slug, many in told for status in many.split(", ")}
    assert found == set(slugs_in_code())


def test_every_metric_is_described() -> None:
    import_module("backlot.up")
    families = {family.name: family.type for family in metrics.REGISTRY.collect()}
    own = {
        f"{name}_total" if kind == "counter" else name
        for name, kind in families.items()
        if name.startswith("backlot_")
    }
    told = re.findall(r"^\| `(backlot_\w+)", page("operations.md"), re.MULTILINE)
    assert set(told) == own


def test_every_module_of_the_engine_is_described() -> None:
    engine = ROOT / "engine"
    files = [path for path in engine.rglob("*.py") if path.name != "__init__.py"]
    modules = [".".join(path.relative_to(engine).with_suffix("").parts) for path in files]
    described = re.findall(r"^\| `([\w.]+)` \| [^|]+ \|$", page("engine.md"), re.MULTILINE)
    assert sorted(described) == sorted(modules)


def test_the_types_that_the_engine_page_names_are_there() -> None:
    (table,) = re.findall(
        r"^## The main types\n(.*?)^## ", page("engine.md"), re.DOTALL | re.MULTILINE
    )
    rows_of_types = re.findall(r"^\| [^|]+ \| (`[^|]+`) \|", table, re.MULTILINE)
    named = {name for row in rows_of_types for name in re.findall(r"`(\w+)`", row)}
    trees = [parsed(path) for path in (ROOT / "engine").rglob("*.py")]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    assert named - classes == set()
    assert named
