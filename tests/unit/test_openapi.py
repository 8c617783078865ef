"""The OpenAPI document has what generators of clients need, and is that of what runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from backlot.http import ApiPart
from infra.http.cors import EXPOSED
from infra.http.problems import ProblemType
from infra.http.shapes import RequestBody, Wire
from tests.api_changes import follow, kinds
from tests.unit.test_cors import OF_EVERY_PAGE, OF_PROXIES, OF_THE_BROWSER, read_in_code
from tests.unit.test_docs import slugs_in_code
from tests.unit.unstarted import application, described

# What says how a thing is, or of which kind it is, by its last word.
STATES = re.compile(r"(^|[a-z])(status|state|kind|purpose|mode|visibility)$", re.IGNORECASE)
# The raw bytes of an event, an aggregate as it stood; other kinds may come.
OPEN = {"AuditEvent.state", "AuditEventDetail.state", "StreamEvent.state"}
OPEN |= {"StreamHistory.state", "TraceNode.kind", "ProblemDetails.status"}
# What earlier releases called language models for stays in the sums.
OPEN |= {"PurposeUsage.purpose", "Spending.byPurpose"}
# The security scheme; what OpenAPI has `content` for.
SAID_OTHERWISE = {"authorization", "content-type"}


@pytest.fixture
def document() -> dict[str, Any]:
    return described(ApiPart.ALL)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def parameters(document: dict[str, Any], operation: Any) -> dict[str, Any]:
    found = [follow(document, each) for each in operation["parameters"]]
    return {each["name"]: each for each in found}


def test_operation_ids_are_short_and_unique(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"[a-z]+([A-Z][a-z0-9]+){1,3}", name)] == []
    assert {"likeVideo", "startUpload", "completeUpload", "getVideo", "listComments"} <= {*names}


@pytest.mark.parametrize(
    ("api", "roles", "title"),
    [
        (ApiPart.ALL, "commands,queries", "Backlot"),
        (ApiPart.COMMANDS, "commands,relay", "Backlot commands"),
        (ApiPart.QUERIES, "queries", "Backlot queries"),
    ],
)
def test_a_process_serves_the_document_of_its_roles(
    api: ApiPart, roles: str, title: str, tmp_path: Path
) -> None:
    app = application(tmp_path, BACKLOT_ROLES=roles)
    assert app.openapi() == described(api)
    assert app.openapi()["info"]["title"] == title


def test_the_document_of_each_api_is_a_part_of_the_whole(document: dict[str, Any]) -> None:
    commands, queries = (described(api)["paths"] for api in (ApiPart.COMMANDS, ApiPart.QUERIES))
    both = {(path, method) for path, method, _ in operations(document)}
    each = [{(path, method) for path in one for method in one[path]} for one in (commands, queries)]
    assert each[0] | each[1] == both
    assert {path for path, _ in each[0] & each[1]} == {"/healthz", "/readyz", "/metrics"}


def test_operators_at_a_port_of_their_own_have_a_document_of_their_own(tmp_path: Path) -> None:
    app = application(tmp_path, ADMIN_PORT="8001")
    (apart,) = app._apart.values()
    assert (app.openapi()["info"]["title"], apart.openapi()["info"]["title"]) == (
        "Backlot",
        "Backlot, for operators",
    )


def test_each_header_that_is_read_is_a_parameter(document: dict[str, Any]) -> None:
    documented = {
        name.lower()
        for _, _, operation in operations(document)
        for name, each in parameters(document, operation).items()
        if each["in"] == "header"
    }
    elsewhere = OF_THE_BROWSER | OF_EVERY_PAGE | OF_PROXIES | SAID_OTHERWISE
    assert read_in_code() - documented - elsewhere == set()
    assert {"range", "if-range", "accept-language"} <= documented


def test_each_header_that_is_sent_is_one_of_an_answer(document: dict[str, Any]) -> None:
    """Which answer has which is looked at while the program runs: `contract_hooks.py`."""
    sent = {
        name
        for _, _, operation in operations(document)
        for answer in operation["responses"].values()
        for name in follow(document, answer)["headers"]
    }
    # `Allow` is of 405, which no operation answers.
    assert {*EXPOSED} - sent == {"Allow"}


def test_every_post_may_be_repeated_and_every_request_named(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        names = parameters(document, operation).keys()
        assert "X-Request-Id" in names, path
        assert ("Idempotency-Key" in names) == (method == "post"), path


def test_each_problem_is_of_a_known_type(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    known = {*get_args(ProblemType.__value__)}
    assert known == {*schemas["ProblemType"]["enum"]} == {slug for slug, _ in slugs_in_code()}
    assert schemas["ProblemDetails"]["properties"]["type"] == {
        "$ref": "#/components/schemas/ProblemType"
    }


def test_each_status_has_an_example_of_its_own(document: dict[str, Any]) -> None:
    of_status = {*slugs_in_code()}
    for path, method, operation in operations(document):
        for status, answer in operation["responses"].items():
            content = follow(document, answer).get("content", {})
            if problem := content.get("application/problem+json"):
                example = problem["example"]
                assert example["status"] == int(status), (method, path)
                assert (example["type"], int(status)) in of_status, (method, path)


def test_what_states_something_is_an_enum(document: dict[str, Any]) -> None:
    open_ones = {
        f"{name}.{member}"
        for name, schema in document["components"]["schemas"].items()
        for member, kind in schema.get("properties", {}).items()
        if STATES.search(member) and not any(_is_enum(document, each) for each in kinds(kind))
    }
    assert open_ones == OPEN


def test_what_is_left_out_of_answers_is_never_null(document: dict[str, Any]) -> None:
    admits_null = {
        name
        for name, schema in document["components"]["schemas"].items()
        for member in schema.get("properties", {}).values()
        if {"type": "null"} in member.get("anyOf", ())
    }
    assert admits_null <= {each.__name__ for each in _below(RequestBody)}
    # Null clears a description.
    assert "ChangeDetails" in admits_null


def _is_enum(document: dict[str, Any], schema: Any) -> bool:
    return bool({"enum", "const"} & follow(document, schema).keys())


def _below(shape: type[Wire]) -> set[type[Wire]]:
    return {shape}.union(*(_below(each) for each in shape.__subclasses__()))


def test_to_complete_an_upload_takes_no_body(document: dict[str, Any]) -> None:
    body = document["paths"]["/uploads/{upload_id}/complete"]["post"]["requestBody"]
    assert body == {
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/CompleteUpload"}}
        },
        "required": False,
    }
