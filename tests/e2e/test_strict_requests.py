"""What a call does not know is refused by name: parameters of its query, members of its body."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import problem, read

# What stands for the parts of paths that are no ids.
PARTS = {"name": "likes", "position": "1", "correlation_id": "x", "key": "videos/x", "list_id": "x"}
METHODS = ("get", "put", "post", "patch", "delete")
UNKNOWN = "colour"

Call = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(server: Program) -> dict[str, Any]:
    found: dict[str, Any] = plain.get(f"{server.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def calls(document: dict[str, Any]) -> list[Call]:
    """Every call: its method, a path of it, and what the document says of it."""
    found = [
        (method.upper(), re.sub(r"\{(\w+)\}", _part, path), operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in METHODS
    ]
    assert len(found) > 50
    return found


@pytest.fixture
def root(server: Program) -> httpx.Client:
    return server.client("root", admin=True)


def _part(found: re.Match[str]) -> str:
    return PARTS.get(found[1], str(uuid4()))


def named(answer: httpx.Response) -> dict[str, str]:
    """The fields that a refusal names, and what is wrong with each."""
    told = problem(answer, 422, "invalid")
    return {each["field"]: each["message"] for each in told["errors"]}


def test_every_call_refuses_a_parameter_that_is_not_its_own(
    server: Program, root: httpx.Client, calls: list[Call]
) -> None:
    for client in (root, server.client()):
        for method, path, operation in calls:
            answer = client.request(method, path, params={UNKNOWN: "red"})
            assert list(named(answer)) == [UNKNOWN], f"{method} {path}"
            own = {each["name"] for each in operation["parameters"] if each.get("in") == "query"}
            # Those that exist are told.
            told = answer.json()["detail"]
            assert f"`{UNKNOWN}`" in told
            assert set(re.findall(r"`(\w+)`", told)) == {UNKNOWN, *own}, f"{method} {path}"
            if method == "GET":
                assert client.head(path, params={UNKNOWN: "red"}).status_code == 422


def test_every_call_refuses_a_member_that_is_not_its_own(
    root: httpx.Client, calls: list[Call]
) -> None:
    asked = 0
    for method, path, operation in calls:
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            answer = root.request(method, path, json={UNKNOWN: "red"})
            assert UNKNOWN in named(answer), f"{method} {path}"
            assert answer.json()["detail"] == f"`{UNKNOWN}`: no member of this body."
            asked += 1
    assert asked > 20


def test_a_shape_within_a_body_is_as_strict(root: httpx.Client) -> None:
    part = {"number": 1, "etag": "x", "size": 7}
    answer = root.post(f"/uploads/{uuid4()}/complete", json={"parts": [part]})
    assert named(answer) == {"parts.0.size": "no member of this body"}


def test_null_is_no_body_where_none_is_needed(alice: httpx.Client, film: str) -> None:
    json_type = {"Content-Type": "application/json"}
    for path in (f"/videos/{film}/share", f"/videos/{film}/watch"):
        answer = alice.post(path, content=b"null", headers=json_type)
        assert answer.status_code in (200, 202), answer.text


def test_all_that_is_unknown_is_named(root: httpx.Client) -> None:
    answer = root.get("/videos?limit=1&LIMIT=2&a=1&a=2&b=")
    assert list(named(answer)) == ["LIMIT", "a", "b"]
    many = root.get("/videos", params={f"p{number}": "x" for number in range(1_000)})
    assert len(named(many)) == 100
    assert len(many.json()["detail"]) < 500
    body = root.post("/uploads", json={f"m{number}": "x" for number in range(1_000)})
    assert len(named(body)) <= 100


def test_what_was_refused_was_not_done(server: Program, film: str) -> None:
    bob = server.client("bob")
    for method in ("POST", "PUT"):
        assert bob.request(method, f"/videos/{film}/like?colour=red").status_code == 422
    content = {"content": "Nice", "pinned": True}
    assert bob.post(f"/videos/{film}/comments", json=content).status_code == 422
    assert read(bob.get(f"/videos/{film}/like")) == {"hasLiked": False, "likesCount": 0}
    assert read(bob.get(f"/videos/{film}/comments"))["items"] == []


def test_the_document_says_so(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            assert "422" in operation["responses"]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name in re.findall(r"#/components/schemas/(\w+)", str(body)):
                assert schemas[name]["additionalProperties"] is False, name
