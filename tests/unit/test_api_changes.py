"""No change of the API breaks a client of the last release unless CHANGELOG.md names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from backlot.http import ApiPart
from tests.api_changes import breaks, unreleased
from tests.support import PROJECT
from tests.unit.unstarted import described

RELEASED = PROJECT / "tests" / "golden" / "openapi.json"
CHANGELOG = (PROJECT / "CHANGELOG.md").read_text()
VIDEO, LIKE, STATS = "/videos/{video_id}", "/videos/{video_id}/like", "/videos/{video_id}/stats"

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    """The document of the last release; before the first one, that of when this test came."""
    found: dict[str, Any] = json.loads(RELEASED.read_text())
    return found


def test_what_breaks_clients_is_named_in_the_changelog(released: dict[str, Any]) -> None:
    told = unreleased(CHANGELOG)
    silent = [
        str(each) for each in breaks(released, described(ApiPart.ALL)) if not each.is_named_in(told)
    ]
    assert silent == [], "name these operations under Unreleased in CHANGELOG.md, or keep them"


def test_the_document_of_the_last_release_is_kept(released: dict[str, Any]) -> None:
    releases = re.findall(r"^## \[([0-9.]+)\]", CHANGELOG, re.MULTILINE)
    present = described(ApiPart.ALL)["info"]["version"]
    assert released["info"]["version"] == (releases[0] if releases else present)


def schemas(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]


def call(document: dict[str, Any], path: str, method: str) -> Any:
    return document["paths"][path][method]


def put_required_parameter(document: dict[str, Any]) -> None:
    parameter = {"name": "why", "in": "query", "required": True, "schema": {"type": "string"}}
    call(document, LIKE, "put")["parameters"].append(parameter)


def require_lang(document: dict[str, Any]) -> None:
    for parameter in call(document, f"{VIDEO}/comments", "get")["parameters"]:
        if parameter.get("name") == "lang":
            parameter["required"] = True


def narrow_ranges(document: dict[str, Any]) -> None:
    schemas(document)["Range"]["enum"].remove("24h")


BREAKING: dict[str, tuple[Edit, str, str]] = {
    "a path": (lambda new: new["paths"].pop(LIKE), "likeVideo", "is gone"),
    "a method": (lambda new: new["paths"][LIKE].pop("put"), "likeVideo", "is gone"),
    "another name": (
        lambda new: call(new, LIKE, "put").update(operationId="like"),
        "likeVideo",
        "is called `like` now",
    ),
    "a member of an answer": (
        lambda new: schemas(new)["Video"]["properties"].pop("category"),
        "getVideo",
        "200.category: is gone",
    ),
    "a member that may be missing": (
        lambda new: schemas(new)["Video"]["required"].remove("likes"),
        "getVideo",
        "200.likes: may be missing now",
    ),
    "a member within a list": (
        lambda new: schemas(new)["Comment"]["properties"].pop("language"),
        "listComments",
        "200.items[].language: is gone",
    ),
    "a member of a body": (
        lambda new: schemas(new)["StartUpload"]["properties"].pop("category"),
        "startUpload",
        "the body.category: is gone",
    ),
    "a member that has to be sent": (
        lambda new: schemas(new)["StartUpload"]["required"].append("category"),
        "startUpload",
        "the body.category: has to be sent now",
    ),
    "a body that has to be sent": (
        lambda new: call(new, "/uploads/{upload_id}/complete", "post")["requestBody"].update(
            required=True
        ),
        "completeUpload",
        "a body has to be sent now",
    ),
    "a shorter limit": (
        lambda new: schemas(new)["WriteComment"]["properties"]["content"].update(maxLength=100),
        "editComment",
        "the body.content: maxLength was 10000, is 100",
    ),
    "another type": (
        lambda new: schemas(new)["Video"]["properties"]["likes"].update(type="string"),
        "getVideo",
        "200.likes: may be now: string, not integer",
    ),
    "null in an answer": (
        lambda new: schemas(new)["Video"]["properties"].update(
            likes={"anyOf": [{"type": "integer"}, {"type": "null"}]}
        ),
        "getVideo",
        "200.likes: may be now: null, not integer",
    ),
    "a new parameter that has to be sent": (
        put_required_parameter,
        "likeVideo",
        "the parameter query why has to be sent now",
    ),
    "a parameter that has to be sent": (
        require_lang,
        "listComments",
        "the parameter query lang has to be sent now",
    ),
    "a parameter": (
        lambda new: call(new, LIKE, "put")["parameters"].clear(),
        "likeVideo",
        "the parameter path video_id is gone",
    ),
    "a value that may not be sent": (
        narrow_ranges,
        "getVideoStats",
        "query timeRange: can't be any more: 24h",
    ),
    "a value that clients don't know": (
        lambda new: schemas(new)["Visibility"]["enum"].append("friends"),
        "getVideo",
        "200.visibility: may be now: friends",
    ),
    "a problem that clients don't know": (
        lambda new: schemas(new)["ProblemType"]["enum"].append("bored"),
        "ProblemDetails",
        "ProblemDetails.type: may be now: bored",
    ),
    "a status": (
        lambda new: call(new, "/uploads", "post")["responses"].pop("201"),
        "startUpload",
        "is not answered 201 any more",
    ),
    "a header of an answer": (
        lambda new: call(new, LIKE, "put")["responses"]["200"]["headers"].pop("Backlot-Position"),
        "likeVideo",
        "200 has no header Backlot-Position any more",
    ),
    "a token that is needed": (
        lambda new: call(new, VIDEO, "get").update(security=[{"bearer": []}]),
        "getVideo",
        "needs a token now",
    ),
}


@pytest.mark.parametrize("name", BREAKING)
def test_what_breaks_clients_is_found(name: str, released: dict[str, Any]) -> None:
    edit, operation, what = BREAKING[name]
    changed = deepcopy(released)
    edit(changed)
    found = breaks(released, changed)
    assert (operation, what) in {(each.operation, each.what) for each in found}
    (one, *_) = [each for each in found if each.operation == operation]
    assert not one.is_named_in("### Changed\n\n- Other operations.")
    assert one.is_named_in(f"### Changed\n\n- `{operation}` is another one.")


HARMLESS: dict[str, Edit] = {
    "nothing": lambda new: None,
    "a path": lambda new: new["paths"].update({"/new": new["paths"][LIKE]}),
    "a parameter": lambda new: call(new, LIKE, "put")["parameters"].append(
        {"name": "why", "in": "query", "schema": {"type": "string"}}
    ),
    "a member of an answer": lambda new: schemas(new)["Video"]["properties"].update(
        new={"type": "string"}
    ),
    "a member that is never missing": lambda new: schemas(new)["Video"]["required"].append(
        "category"
    ),
    "a member of a body": lambda new: schemas(new)["StartUpload"]["properties"].update(
        new={"type": "string"}
    ),
    "a longer limit": lambda new: schemas(new)["WriteComment"]["properties"]["content"].update(
        maxLength=20_000
    ),
    "a value that may be sent": lambda new: schemas(new)["ReportReason"]["enum"].append("boring"),
    "a value that is answered no more": lambda new: schemas(new)["ThingKind"]["enum"].remove(
        "video"
    ),
    "an end of needing a token": lambda new: call(new, LIKE, "put").update(
        security=[{}, {"bearer": []}]
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_adds_to_the_api_breaks_nothing(name: str, released: dict[str, Any]) -> None:
    changed = deepcopy(released)
    HARMLESS[name](changed)
    found = [str(each) for each in breaks(released, changed)]
    # What moderators are shown of a report has its reason.
    assert [each for each in found if "listReports" not in each] == []


def test_only_the_release_to_come_is_looked_at() -> None:
    text = "# Changelog\n\n## [Unreleased]\n\n- One.\n\n## [0.1.0]\n\n- `likeVideo` is new.\n"
    assert unreleased(text) == "\n- One.\n\n"
