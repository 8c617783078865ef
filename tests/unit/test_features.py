"""Everything that the packages have belongs to exactly one feature, also what comes tomorrow."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import TypeVar

import pytest
from dramatiq.brokers.stub import StubBroker
from fastapi import APIRouter

import commands
import engine
import projections
import readapi
import workers
from backlot.app import _takes_requests
from backlot.features import FEATURES, PERSONAL, no_lookups, nothing, read_models
from engine.lookups import Lookup
from engine.projection import Projection
from infra.settings import Settings, features, load_settings
from infra.settings.values import SettingsGroup
from tests.support import aggregates
from workers.tasks import declare

T = TypeVar("T")

# A process of its own, which reads its settings when it is imported.
PROGRAMS = {"workers.app"}
WORK = ("reactors", "subscriptions", "sweeps", "jobs", "lookups")


@cache
def modules(package: ModuleType) -> list[ModuleType]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(each.name) for each in found if each.name not in PROGRAMS]


def subclasses(kind: type[T], *packages: ModuleType) -> set[type[T]]:
    """The concrete subclasses that these packages define."""
    names = {module.__name__ for package in packages for module in modules(package)}
    return {
        each for each in _below(kind) if each.__module__ in names and not inspect.isabstract(each)
    }


def _below(kind: type[T]) -> Iterator[type[T]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def routers(package: ModuleType) -> list[int]:
    """The routers that stand in modules, by their identity: they have no other.

    Those for objects are made where a folder holds these.
    """
    found = (value for module in modules(package) for value in vars(module).values())
    return sorted({id(value) for value in found if isinstance(value, APIRouter)})


def work() -> set[object]:
    """What modules declare to be done in the background, by its name."""
    return {
        value
        for module in modules(workers)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and name.rpartition("_")[2] in WORK
    }


def once(declared: Iterable[T]) -> set[T]:
    """What is declared; fail where two features have the same."""
    counts = Counter(declared)
    assert [each for each, count in counts.items() if count > 1] == []
    return set(counts)


def test_names_are_distinct() -> None:
    assert len(once(feature.name for feature in FEATURES)) == len(FEATURES)


def test_every_aggregate_belongs_to_a_feature() -> None:
    assert once(each for feature in FEATURES for each in feature.aggregates) == set(aggregates())


def test_every_projection_belongs_to_a_feature() -> None:
    found = subclasses(Projection, projections, engine)  # type: ignore[type-abstract]
    former = {each for kind in found for each in kind.former}
    assert once(each for feature in FEATURES for each in feature.projections) == found - former
    assert set(map(type, read_models().all())) == found - former


def test_every_router_belongs_to_a_feature() -> None:
    asked = [id(each) for feature in FEATURES for each in feature.commands]
    answered = [id(each) for feature in FEATURES for each in feature.queries]
    assert sorted(asked) == routers(commands)
    assert sorted(answered) == routers(readapi)


def test_every_lookup_is_answered_by_a_feature() -> None:
    models = read_models()
    answered = once(kind for feature in FEATURES for kind in feature.lookups(models))
    assert answered == subclasses(Lookup, commands)  # type: ignore[type-abstract]


def test_all_work_belongs_to_a_feature() -> None:
    declared = (getattr(feature, name) for feature in FEATURES for name in WORK)
    assert once(each for each in declared if each not in (nothing, no_lookups)) == work()


def test_every_place_with_personal_data_belongs_to_a_feature() -> None:
    packages = (commands, engine, projections, readapi, workers)
    found = (vars(module).get("PERSONAL", ()) for each in packages for module in modules(each))
    assert once(PERSONAL) == {place for places in found for place in places}


def test_every_task_belongs_to_a_feature() -> None:
    broker = StubBroker()
    declare(broker, NotImplemented)
    assert once(name for feature in FEATURES for name in feature.tasks) == set(broker.actors)


def test_every_group_of_settings_of_a_feature_belongs_to_one() -> None:
    declared = once(group for feature in FEATURES for group in feature.settings)
    groups = {
        each for each in SettingsGroup.__subclasses__() if each.__module__ == features.__name__
    }
    assert declared >= groups
    assert declared <= {field.annotation for field in Settings.model_fields.values()}


@pytest.mark.parametrize(
    ("roles", "more", "takes"),
    [
        ("queries,tasks", {}, True),
        ("queries", {"REDIS_URL": "redis://one"}, True),
        ("queries", {}, False),
        ("tasks", {}, False),
        ("queries,tasks", {"TRANSLATION_TARGETS": "en"}, False),
    ],
)
def test_readers_ask_for_translations_where_somebody_runs_the_tasks(
    roles: str, more: dict[str, str], takes: bool
) -> None:
    settings = load_settings({"TRANSLATION_TARGETS": "de", "BACKLOT_ROLES": roles, **more})
    assert _takes_requests(settings) == takes
