"""The OpenAPI document of an API, made so that generators of clients have good names and types.

FastAPI describes what endpoints declare. Added here is what the edge reads, sends and refuses on
its own; operation ids are the names of the endpoints, and what is the same in many operations is a
component.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.alias_generators import to_camel
from starlette.routing import BaseRoute

from infra.http.problems import PROBLEM_JSON, ProblemDetails, problems
from infra.http.requests import rate_class
from infra.http.shapes import without_null

Json = dict[str, Any]

OF_THE_EDGE = (414, 421, 429, 431)
"""What any call may answer before anybody looks what it is, but for those without limits."""
TOKEN_OPTIONAL: Json = {"security": [{}, {"bearer": []}]}
"""`openapi_extra=` of a public call that tells a known caller more."""
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "`backlot token --user alice` mints one for the local secret.",
}


def reads(name: str, description: str, **schema: Any) -> Json:
    """Return a header of requests, as one of the `parameters` of `openapi_extra=`."""
    told = {"type": "string", **schema}
    return {
        "name": name, "in": "header", "required": False, "description": description, "schema": told
    }  # fmt: skip


REQUEST_ID = reads(
    "X-Request-Id",
    "What the request is called, in up to 128 printable ASCII characters: the correlation id of "
    "every event that follows. Without it one is made.",
)
IDEMPOTENCY_KEY = reads(
    "Idempotency-Key",
    "Names the request for 24 hours: the same one under the same key is answered as it was, and "
    "done once; another one under it is 409 `idempotency-key-reused`.",
    minLength=1,
    maxLength=255,
    pattern="^[ -~]+$",
)
MIN_POSITION = "Backlot-Min-Position"
ALWAYS = frozenset({"Backlot-Position", "Cache-Control", "X-Request-Id", "WWW-Authenticate"})
"""The headers that are never missing where the document has them."""
SENT: Mapping[str, str] = {
    "Accept-Ranges": "`bytes`: a `Range` may be asked for.",
    "Backlot-Position": "How much of what was recorded is in the answer. Of a command: its effect "
    "is. What `Backlot-Min-Position` takes.",
    "Backlot-Stale-Position": "The answer is older than `Backlot-Min-Position`: it has what was "
    "recorded up to here.",
    "Cache-Control": "Who may keep the answer.",
    "Content-Disposition": "Whether the film is shown or saved, and its name.",
    "Content-Language": "The language of `translatedText`.",
    "Content-Range": "Which bytes these are, of how many.",
    "Content-Security-Policy": "What a browser may do with the film: play it.",
    "ETag": "What the answer is known by: `If-None-Match` takes it.",
    "Idempotency-Replayed": "`true`: the answer of an earlier request with this `Idempotency-Key`.",
    "Last-Modified": "When the object was written.",
    "Location": "Where what was begun is.",
    "RateLimit": "How many requests of this class are left, and for how many seconds.",
    "RateLimit-Policy": "How many requests of this class may be made, and within how many seconds.",
    "Retry-After": "After how many seconds to come back.",
    "Tus-Checksum-Algorithm": "How `Upload-Checksum` may be made.",
    "Tus-Extension": "What of tus is here beside its core.",
    "Tus-Max-Size": "How many bytes a file may have.",
    "Tus-Resumable": "The version of tus that is spoken.",
    "Tus-Version": "The versions of tus that are spoken.",
    "Upload-Expires": "When the upload is given up, if nothing more comes.",
    "Upload-Length": "How many bytes the file has.",
    "Upload-Metadata": "What the file is called, and its type.",
    "Upload-Offset": "How many of its bytes are kept.",
    "Vary": "Headers of the request that the answer depends on.",
    "WWW-Authenticate": "`Bearer`: what is to be sent.",
    "X-Accel-Buffering": "`no`: proxies pass on at once what is sent.",
    "X-Content-Type-Options": "`nosniff`: the type is what `Content-Type` says.",
    "X-Request-Id": "What the request is called: the one that was sent, or a new one.",
}
"""The headers of answers, and what each says."""
WHOLE_SECONDS: Json = {"type": "integer", "minimum": 1}


def may_send(*names: str) -> Json:
    """Return the same as `sends`, of headers that are not always there."""
    return {name: {**_header(name), "required": False} for name in names}


def sends(*names: str) -> Json:
    """Return the `headers` of an answer in a route's `responses=`, by their names in `SENT`."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def document(title: str, version: str, routes: Sequence[BaseRoute]) -> Json:
    """Return the OpenAPI document of these routes."""
    found = get_openapi(title=title, version=version, routes=routes)
    components: Json = found.setdefault("components", {})
    components["securitySchemes"] = {"bearer": BEARER}
    components["headers"] = {name: _header(name) for name in sorted(SENT)}
    components["schemas"] = _schemas(components.get("schemas", {}))
    components["responses"] = {}
    names = dict(_operation_ids(routes))
    operations = [
        (path, method, operation)
        for path, methods in found.get("paths", {}).items()
        for method, operation in methods.items()
    ]
    for path, method, operation in operations:
        operation["operationId"] = names[path, method]
        _describe_request(method, operation)
        _describe_answers(path, method, operation)
        _share_problems(operation, components["responses"])
    components["parameters"] = _share_headers([each for _, _, each in operations])
    return found


def _operation_ids(routes: Iterable[BaseRoute]) -> Iterator[tuple[tuple[str, str], str]]:
    for route in routes:
        if isinstance(route, APIRoute):
            for method in route.methods or ():
                yield (route.path_format, method.lower()), to_camel(route.name)


def _header(name: str) -> Json:
    schema = WHOLE_SECONDS if name == "Retry-After" else {"type": "string"}
    required = {"required": True} if name in ALWAYS else {}
    return {"description": SENT[name], **required, "schema": schema}


def _schemas(schemas: Json) -> Json:
    """Return the components of the application, and those of problems, without idle titles."""
    problem = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs") | {"ProblemDetails": problem}
    problem["properties"]["requestId"] = without_null(problem["properties"]["requestId"])
    for schema in schemas.values():
        _drop_titles(schema)
    return dict(sorted(schemas.items()))


def _drop_titles(schema: Any) -> None:
    """Drop titles that FastAPI makes of the names of members, which generators take for types.

    Those of objects are the names of their types.
    """
    if not isinstance(schema, dict):
        return
    if "properties" not in schema:
        schema.pop("title", None)
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    for each in (*inner, schema.get("items"), schema.get("additionalProperties")):
        _drop_titles(each)


def _describe_request(method: str, operation: Json) -> None:
    """Add what the edge reads of each request, and whether there has to be a body."""
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        parameter["schema"] = without_null(parameter["schema"])
        parameter["schema"].pop("description", None)
        _drop_titles(parameter["schema"])
    if method == "post" and "401" in operation["responses"]:
        parameters.append(IDEMPOTENCY_KEY)
    parameters.append(REQUEST_ID)
    if body := operation.get("requestBody"):
        body.setdefault("required", False)
        for content in body["content"].values():
            # Null is taken for no body, but generators send nothing right where it may be both.
            content["schema"] = without_null(content["schema"])
            _drop_titles(content["schema"])


def _describe_answers(path: str, method: str, operation: Json) -> None:
    """Add what the edge refuses, and the headers of each answer."""
    answers = operation["responses"]
    # That is how query parameters are refused which a call does not have.
    answers.setdefault("422", problems(422)[422])
    if "401" in answers:
        operation.setdefault("security", [{"bearer": []}])
    if limited := (rate_class("GET", path) is not None):
        for status, told in problems(*OF_THE_EDGE).items():
            answers.setdefault(str(status), told)
    waits = any(parameter["name"] == MIN_POSITION for parameter in operation["parameters"])
    for status, answer in answers.items():
        for content in answer.get("content", {}).values():
            _drop_titles(content.get("schema"))
        if PROBLEM_JSON in answer.get("content", {}):
            answer["headers"] = _of_problem(status) | answer.get("headers", {})
            continue
        names = ["Cache-Control", "X-Request-Id"]
        names += ["RateLimit", "RateLimit-Policy"] if limited else []
        names += ["Retry-After"] if status == "503" else []
        if status[0] == "2" and method != "get" and "401" in answers:
            names += ["Backlot-Position", *(["Idempotency-Replayed"] if method == "post" else [])]
        if status in ("200", "304") and waits:
            names += ["Backlot-Position", "Backlot-Stale-Position"]
        if status in ("200", "304") and {"304", "401"} <= answers.keys():
            names += ["ETag", "Vary"]
        answer["headers"] = dict(sorted((sends(*names) | answer.get("headers", {})).items()))


def _of_problem(status: str) -> Json:
    """Return the headers of a problem, which are those of its status in all operations."""
    names = ["Backlot-Stale-Position", "Cache-Control", "RateLimit", "RateLimit-Policy"]
    names += ["X-Request-Id", *(["WWW-Authenticate"] if status == "401" else [])]
    names += ["Retry-After"] if status in ("409", "429", "503") else []
    # Queries have it here, too, once they have read something.
    return dict(sorted((sends(*names) | may_send("Backlot-Position")).items()))


def _share_problems(operation: Json, shared: Json) -> None:
    """Put references in place of problems, which are the same in all operations of a protocol."""
    answers = operation["responses"]
    for status, answer in answers.items():
        if problem := answer.get("content", {}).get(PROBLEM_JSON):
            slug = str(problem["example"]["type"])
            name = "".join(word.capitalize() for word in slug.split("-"))
            if shared.setdefault(name, answer) != answer:
                name += "Of" + operation["tags"][0].capitalize()
                shared[name] = answer
            answers[status] = {"$ref": f"#/components/responses/{name}"}


def _share_headers(operations: Iterable[Json]) -> Json:
    """Put references in place of headers of requests that several operations have; return them."""
    lists = [operation["parameters"] for operation in operations]
    headers = [each for parameters in lists for each in parameters if each["in"] == "header"]
    counts = Counter(str(each) for each in headers)
    shared = {each["name"]: each for each in headers if counts[str(each)] > 1}
    for parameters in lists:
        parameters[:] = [
            {"$ref": f"#/components/parameters/{each['name']}"}
            if shared.get(each["name"]) == each
            else each
            for each in parameters
        ]
    return dict(sorted(shared.items()))
