"""What an actor is stands beside its name in every event, and nobody can borrow a name."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from domain.model import ActorKind, Aggregate, Origin, SystemActor, actor_kind, is_reserved
from domain.video_likes import VideoLikes
from engine.log import MAPPER
from tests.structure import PACKAGES, ROOT, nodes_of

VIDEO = UUID(int=7)
NOW = datetime(2026, 11, 30, tzinfo=UTC)


def liked(actor: str, kind: ActorKind | None = None) -> Aggregate.Event:
    likes = VideoLikes.blank(uuid4())
    likes.like(VIDEO, actor, Origin(actor, NOW, "c", "c", kind))
    (event,) = likes.collect_events()
    assert isinstance(event, Aggregate.Event)
    return event


@pytest.mark.parametrize(
    ("actor", "kind", "recorded"),
    [
        ("ann", None, "user"),
        ("olga", ActorKind.OPERATOR, "operator"),
        ("0f" * 32, ActorKind.ANONYMOUS, "anonymous"),
        ("operator:root", None, "operator"),
        *((actor, None, "system") for actor in SystemActor),
    ],
)
def test_the_kind_is_stored_with_the_event(
    actor: str, kind: ActorKind | None, recorded: str
) -> None:
    stored = MAPPER.to_stored_event(liked(actor, kind))
    assert f'"actor_kind":"{recorded}"'.encode() in stored.state
    read = MAPPER.to_domain_event(stored)
    assert isinstance(read, Aggregate.Event)
    assert read.actor_kind == recorded
    assert MAPPER.to_stored_event(read) == stored


def test_events_of_older_releases_have_none_and_stay_as_they_are() -> None:
    event = liked("ann")
    del vars(event)["actor_kind"]
    stored = MAPPER.to_stored_event(event)
    assert b"actor_kind" not in stored.state
    read = MAPPER.to_domain_event(stored)
    assert isinstance(read, Aggregate.Event)
    assert read.actor_kind is None
    assert MAPPER.to_stored_event(read).state == stored.state


def test_every_name_that_the_program_acts_under_is_reserved() -> None:
    """Whatever is called ACTOR, and every text given as `actor=` or `requested_by=`."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in nodes_of(path):
                if isinstance(node, ast.Assign) and _is_actor(node):
                    found.add(ast.unparse(node.value))
                if isinstance(node, ast.keyword) and node.arg in ("actor", "requested_by"):
                    found |= _text(node.value)
    assert found == {f"SystemActor.{each.name}" for each in SystemActor if each != "system"}
    assert all(actor_kind(each) is ActorKind.SYSTEM and is_reserved(each) for each in SystemActor)


def _is_actor(node: ast.Assign) -> bool:
    return any(isinstance(name, ast.Name) and name.id == "ACTOR" for name in node.targets)


def _text(value: ast.expr) -> set[str]:
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return {ast.unparse(value)} if is_text else set()
