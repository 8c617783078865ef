"""What the console makes of what the API tells it; the pages themselves are looked at elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from backlot.cli import app
from web.console.now import lag_kind, page_for
from web.console.outcomes import picked, summary, with_query, without
from web.console.projections import ACTS, acts_of, state_of
from web.console.queues import EVENT
from web.templating import HERE

CONSOLE = HERE / "templates" / "console"
LIVE: dict[str, Any] = {"kind": "live", "version": 1}
PREVIOUS: dict[str, Any] = {"kind": "previous", "version": 1}
COMMAND = re.compile(r'ui\.cli\("backlot ([a-z -]+)')


def projection(status: str = "running", *copies: dict[str, Any], **replay: Any) -> dict[str, Any]:
    told = {"status": status, "parked": 0, "copies": [LIVE, *copies]}
    return told | ({"replay": {"id": 1, "paused": False} | replay} if replay else {})


@pytest.mark.parametrize(
    ("told", "possible"),
    [
        (projection(), ["pause", "verify", "completeness"]),
        (projection("paused"), ["resume", "verify", "completeness"]),
        (projection("stopped"), ["resume", "verify", "completeness"]),
        (
            projection("running", PREVIOUS, state="switched"),
            ["pause", "verify", "completeness", "rollback", "drop-old"],
        ),
        (projection(state="building"), ["pause", "pause-replay", "cancel"]),
        (projection(state="building", paused=True), ["pause", "resume-replay", "cancel"]),
        (projection(state="waiting"), ["pause", "confirm", "pause-replay", "cancel"]),
    ],
)
def test_what_is_possible_depends_on_the_state(told: dict[str, Any], possible: list[str]) -> None:
    assert acts_of(told) == possible
    assert set(possible) <= set(ACTS)


def test_forms_stay_while_the_same_is_possible() -> None:
    building = projection(state="building", position=1)
    assert state_of(building) == state_of(projection(state="building", position=2))
    others = [
        projection(),
        projection("paused", state="building"),
        projection(state="waiting"),
        projection(state="building", paused=True),
        projection("running", PREVIOUS, state="building"),
        building | {"parked": 1},
        building | {"errorPosition": 7},
    ]
    assert state_of(building) not in map(state_of, others)


def test_a_button_of_a_row_acts_on_that_row_alone() -> None:
    ticked = {"_csrf": "c", "reason": "r", "pick:likes:7": "on", "pick:likes:9": "on"}
    assert picked(ticked) == ["likes:7", "likes:9"]
    assert picked(ticked | {"only": "likes:3"}) == ["likes:3"]
    assert picked({"reason": "r"}) == []
    assert EVENT.fullmatch("likes:7")
    assert not EVENT.fullmatch("likes/../x:7")


def test_pages_are_followed_by_their_operation_and_lose_it_again() -> None:
    asked = with_query("/console/queues/letters?subscription=a%26b&asked=old", asked="new")
    assert asked == "/console/queues/letters?subscription=a%26b&asked=new"
    assert without(asked, "asked") == "/console/queues/letters?subscription=a%26b"
    assert without("/console/queues?asked=1", "asked") == "/console/queues"


@pytest.mark.parametrize(
    ("operation", "line"),
    [
        ({"status": "done", "result": {"redriven": 2}}, "Done: a b (redriven 2)"),
        ({"status": "done", "result": {"complete": True}}, "Done: a b"),
        ({"status": "refused", "result": {"reason": "not there"}}, "Refused: a b (not there)"),
        ({"status": "failed", "result": {"error": "it broke"}}, "Failed: a b (it broke)"),
        ({"status": "cancelled"}, "Cancelled: a b"),
    ],
)
def test_what_came_of_it_in_a_line(operation: dict[str, Any], line: str) -> None:
    assert summary({"action": "a", "subject": "b"} | operation) == line


def test_findings_lead_to_where_they_are_dealt_with() -> None:
    where = {
        "remove the cause and `backlot projections resume likes`, or": "/console/projections/likes",
        "`backlot projections parked` lists them": "/console/queues",
        "`backlot topics dead` lists them": "/console/queues/letters",
        "`backlot doctor` says whether it answers": None,
    }
    assert {text: page_for({"remedy": text}) for text in where} == where
    assert [lag_kind(seconds) for seconds in (0, 30, 3600)] == ["good", "warn", "bad"]


def commands() -> Iterator[tuple[Path, str]]:
    for template in sorted(CONSOLE.glob("*.html")):
        for found in COMMAND.findall(template.read_text()):
            yield template, found
    for act in ACTS.values():
        yield CONSOLE, f"projections {act.command.format(name='')}"


def test_each_command_that_the_console_shows_exists() -> None:
    shown = list(commands())
    assert len(shown) > 10
    for template, told in shown:
        at: Any = get_command(app)
        for word in told.split():
            if word.startswith("-") or not hasattr(at, "commands"):
                break
            assert word in at.commands, f"{template.name}: backlot {told}"
            at = at.commands[word]
        # What ends with a space goes on with an argument, or with an act of `ACTS`.
        alone = not hasattr(at, "commands") or at.invoke_without_command
        assert alone or told.endswith(" "), f"{template.name}: backlot {told}"


def test_each_page_of_the_console_shows_a_command() -> None:
    for template in sorted(CONSOLE.glob("*.html")):
        text = template.read_text()
        if '{% extends "console/base.html" %}' in text:
            parts = re.findall(r'{% include "(console/[a-z_]+\.html)" %}', text)
            whole = text + "".join((HERE / "templates" / part).read_text() for part in parts)
            assert "ui.cli(" in whole, template.name
