"""The declarations of where personal data lies, and what of an event is whose."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from uuid import uuid4

import pytest

from backlot.features import PERSONAL
from engine.inspection.persons import personal_fields, shown
from engine.personal_data import (
    Deleted,
    PersonalEntries,
    PersonalKeys,
    PersonalTable,
    Rewritten,
    Unsearched,
)
from engine.purge import UNHURRIED_SECONDS, SharedTime
from infra.settings import Settings
from tests.structure import ROOT

PAGE = (ROOT / "docs" / "privacy.md").read_text()
ROW = r"^\| `([\w.]+)` \| ([^|]+) \| (?:[^|]+) \| ([^|]+) \| ([^|]+) \|$"
PARTS = re.findall(ROW, PAGE, re.MULTILINE)


def test_each_place_has_a_name_that_a_file_may_have() -> None:
    names = Counter(place.name for place in PERSONAL)
    assert [name for name, count in names.items() if count > 1] == []
    assert [name for name in names if not re.fullmatch(r"[a-z_.]+", name)] == []


def test_what_is_kept_for_how_long_is_a_setting_that_exists_or_said_in_words() -> None:
    assert {place.setting for place in PERSONAL} - Settings.variables() == {None}
    assert [place.name for place in PERSONAL if not (place.kept and place.holds)] == []


def test_a_table_says_how_a_person_is_found_in_it() -> None:
    tables = [place for place in PERSONAL if isinstance(place, PersonalTable)]
    assert [each.name for each in tables if bool(each.columns) == bool(each.where)] == []
    assert [
        each.name for each in tables if ("{schema}" in each.table) != bool(each.projection)
    ] == []


def test_the_page_for_operators_lists_every_place() -> None:
    told = {
        place.name: (
            place.holds,
            place.kept + f" (`{place.setting}`)" * bool(place.setting),
            str(place.forget),
        )
        for place in PERSONAL
    }
    assert {name: (holds, kept, after) for name, holds, kept, after in PARTS} == told


def test_every_place_says_what_becomes_of_it_when_the_person_is_forgotten() -> None:
    assert [place.name for place in PERSONAL if place.forget is None] == []
    assert [place.name for place in PERSONAL if not str(place.forget).strip()] == []
    # What can't be deleted by key or row is deleted otherwise, and that has to be said.
    named = (PersonalTable, PersonalKeys, PersonalEntries)
    deleted = [place for place in PERSONAL if isinstance(place.forget, Deleted)]
    assert [place.name for place in deleted if not isinstance(place, named)] == []


def test_of_a_read_model_only_the_read_model_itself_purges() -> None:
    """Else a replay would end otherwise than what is live."""
    copies = [each for each in PERSONAL if isinstance(each, PersonalTable) and each.projection]
    assert [each.name for each in copies if isinstance(each.forget, Rewritten)] == []
    purged = [each for each in copies if each.purge is not None]
    # No purge looks at what is no row of its own copy.
    assert [each.name for each in purged if each.where and "SELECT" in each.where] == []


@pytest.mark.parametrize("user", ["alice", "a*", "[bob]", "back\\slash", "who?", "käthe"])
def test_a_glob_of_keys_finds_one_person(user: str) -> None:
    place = PersonalKeys(name="k", holds="h", kept="k", pattern="of:{limits}:{subject}")
    glob = place.of(user)
    # Redis and this match an escaped character by itself.
    assert re.sub(r"\\(.)", r"\1", glob) == f"of:{{limits}}:{user}"
    assert re.search(r"(?<!\\)[*?\[]", glob) is None
    assert place.holds_key(f"of:{{limits}}:{user}")
    assert not place.holds_key("of:others")


def test_a_key_that_is_known_needs_no_search() -> None:
    one = PersonalKeys(name="k", holds="h", kept="k", pattern="of:{subject}:{digest}")
    assert one.only_key("a*b") == f"of:a*b:{sha256(b'a*b').hexdigest()[:32]}"
    assert replace(one, pattern="of:*:{subject}").only_key("ann") is None


def test_a_purge_leaves_others_most_of_the_time_and_later_half_of_it() -> None:
    now = 1000.0
    pace = SharedTime(lambda: now)
    assert pace.pause_behind(0.1) == pytest.approx(0.5)
    now += UNHURRIED_SECONDS - 0.3
    assert pace.pause_behind(0.1) == pytest.approx(0.3)
    now += 100
    assert pace.pause_behind(0.1) == 0.1


def test_places_that_nobody_searches_say_where_they_are() -> None:
    assert all(place.where for place in PERSONAL if isinstance(place, Unsearched))


def said(subject: str, topic: str, field: str | None = None, **payload: object) -> object:
    row = (7, uuid4(), 1, topic, json.dumps(payload).encode())
    found = shown(subject, field, row)
    return None if found is None else found["payload"]


def test_what_is_about_somebody_else_is_left_out() -> None:
    event = {"author": "ann", "content": "Nice", "actor": "mod", "acted_as": "moderator"}
    approved = "comment.approved.v1"
    assert said("ann", approved, **event) == {
        "author": "ann",
        "content": "Nice",
        "acted_as": "moderator",
    }
    assert said("mod", approved, **event) == {"actor": "mod", "acted_as": "moderator"}
    # Who is named by chance, as by the text itself, has no part in it.
    assert said("Nice", approved, **event) is None
    blocked = {"blocker": "ann", "blocked": "bob", "actor": "ann"}
    assert said("bob", "blocks.blocked.v1", "blocked", **blocked) == {"blocked": "bob"}
    assert said("ann", "blocks.blocked.v1", "blocked", **blocked) is None


def test_of_an_event_that_nobody_can_read_only_the_actor_is_known() -> None:
    assert said("ann", "unheard.of", actor="ann", content="?") == {"actor": "ann", "content": "?"}
    assert shown("ann", None, (1, uuid4(), 1, "comment.posted.v1", b"\xff")) is None


def test_texts_of_an_upload_are_its_owner_s() -> None:
    fields = personal_fields("upload.started.v2")
    texts = ("title", "description", "filename")
    assert {fields[name] for name in texts} == {"owner"}
    assert personal_fields("upload.started.v1") == fields
