"""What schemathesis runs around its requests: they name things that exist, and are counted.

Loaded by schemathesis itself, in a process of its own: see `schemathesis.toml`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import httpx
import schemathesis

from domain.moderation import case_id
from infra.http.auth import mint_token
from infra.objects.port import ALGORITHMS
from tests.api_changes import follow
from tests.e2e import plain
from tests.e2e.videos import read, send_parts, start, upload
from tests.real_inputs import real_inputs
from tests.support import eventually

# A stream of a video that exists has no end; tests/e2e/test_live.py reads one.
ENDLESS = "/videos/{video_id}/events"
LONGEST_WAIT_SECONDS = 30
# What is sent to signed URLs, which take a part of this size only.
PART = b"0"
# As which tus sends bytes of a file.
BYTES = "application/offset+octet-stream"
# Members of bodies, and the kinds of real inputs that are tried in each.
REAL = {
    "title": ["texts"],
    "category": ["texts"],
    "content": ["texts", "comments"],
    "filename": ["file_names"],
    "contentType": ["media_types"],
}
# Given, because to import what it is a constant of takes longer than many calls.
LONGEST_LIST_ID = int(os.environ["CONTRACT_LONGEST_LIST_ID"])
LONGEST_KEY = 255
# Those of HTTP itself, and of the server that all answers come from.
OF_EVERY_ANSWER = frozenset(
    {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
)
# Under which everything that is made here is found in the audit.
CONVERSATION = "contract"


class World:
    """Makes what requests need, so that they get further than "not found"."""

    def __init__(self) -> None:
        headers = {"Authorization": f"Bearer {os.environ['CONTRACT_TOKEN']}"}
        headers["X-Request-Id"] = CONVERSATION
        self._client = plain.client(base_url=os.environ["CONTRACT_URL"], headers=headers)
        self._video = upload(self._client)
        # Nobody is recommended what is their own.
        headers = {"Authorization": f"Bearer {os.environ['CONTRACT_OTHER_TOKEN']}"}
        self._other = plain.client(base_url=os.environ["CONTRACT_URL"], headers=headers)
        self._others = upload(self._other)
        self._signed, self._listed, self._revoked = count(), count(), count()
        self._users, self._keys, self._proofs = count(), count(), count()
        # Looks use it up no more than a video; each takes a process of its own.
        self._checked = self._operation()
        self._kept_webhook = self._webhook()

    def place(self, case: schemathesis.Case[Any]) -> None:
        """Give a case that names something unknown the name of something that exists."""
        names = case.path_parameters or {}
        if case.path == ENDLESS:
            return
        for name in names:
            make = self._makers(case).get(name)
            if make is not None and _is_uuid(names[name]):
                names[name] = make()
        if "key" in names and next(self._signed) % 2:
            url = urlsplit(self._signed_url(case.method))
            names["key"] = url.path.removeprefix("/objects/")
            case.query = dict(parse_qsl(url.query))
            if case.method == "PUT":
                case.body = PART
            # What is made up here is no checksum of the bytes that are sent.
            for header in [*(case.headers or {})]:
                if header.lower() in ALGORITHMS:
                    del case.headers[header]
        if "name" in names and len(names["name"]) == 1:
            names["name"] = "likes"
        if "correlation_id" in names and len(names["correlation_id"]) == 1:
            names["correlation_id"] = CONVERSATION

    def answer(self, case: schemathesis.Case[Any]) -> None:
        """Have a comment reply to one that exists."""
        if isinstance(case.body, dict) and _is_uuid(case.body.get("parentId")):
            case.body["parentId"] = self._comment(self._client)

    def hurry(self, case: schemathesis.Case[Any]) -> None:
        """Wait for nothing: at the end of the log a wait takes as long as it says."""
        wait = str((case.query or {}).get("wait", ""))
        if case.path == "/events" and wait.isdecimal() and int(wait) <= LONGEST_WAIT_SECONDS:
            case.query["wait"] = "0"

    def leave_out(self, case: schemathesis.Case[Any]) -> None:
        """Send no null: it is taken for no body, beside what is documented.

        tests/e2e/test_strict_requests.py sends it.
        """
        if case.body is None and not case.operation.definition.raw["requestBody"]["required"]:
            case.body = {}

    def prove(self, case: schemathesis.Case[Any]) -> None:
        """Ask for the proof of the first event, leading to the first seal; every other time."""
        wrong = case.meta is not None and case.meta.generation.mode.is_negative
        names = case.path_parameters or {}
        if case.path == "/audit/seals/{number}/proof" and not wrong and next(self._proofs) % 2:
            names["number"] = self._first_seal()
            case.query = {**(case.query or {}), "position": "1"}

    def _first_seal(self) -> int:
        return int(
            eventually(lambda: read(self._client.get("/audit/seals"))["items"])[-1]["number"]
        )

    def forget(self, case: schemathesis.Case[Any]) -> None:
        """Name users to be forgotten who were here and whom nobody needs; every other time."""
        about_forgetting = case.path in ("/users/{user_id}", "/users/{user_id}/forgetting")
        if about_forgetting and case.path_parameters and next(self._users) % 2:
            case.path_parameters["user_id"] = user = self._user()
            if case.method != "DELETE":
                read(self._client.delete(f"/users/{user}"))

    def append(self, case: schemathesis.Case[Any]) -> None:
        """Send by tus what comes next, where a case that is right sends something else."""
        wrong = case.meta is not None and case.meta.generation.mode.is_negative
        if case.method == "PATCH" and case.path.startswith("/tus/") and not wrong:
            names = {name.lower(): name for name in case.headers or {}}
            case.headers[names["upload-offset"]], case.body = "0", PART
            if checksum := names.get("upload-checksum"):
                del case.headers[checksum]

    def _user(self) -> str:
        user = f"passer-by-{next(self._users)}"
        token = mint_token(os.environ["CONTRACT_SECRET"], user)
        read(self._client.get("/videos", headers={"Authorization": f"Bearer {token}"}))
        return user

    def rename(self, case: schemathesis.Case[Any]) -> None:
        """Give each sound request that has a key one of its own: under the same it is a repeat.

        Others would be sent what they leave out on purpose, once their headers are changed.
        """
        if case.meta is None or not case.meta.generation.mode.is_positive:
            return
        headers: Any = case.headers or {}
        if key := headers.get("Idempotency-Key"):
            headers["Idempotency-Key"] = f"{next(self._keys)} {key}"[:LONGEST_KEY]

    def recommend(self, case: schemathesis.Case[Any]) -> None:
        """Name a list that was given, and the video in it; every other time, and none too long."""
        names = case.path_parameters or {}
        if case.path == "/recommendations/not-interested":
            _name_video(case.body, self._video)
        if "list_id" not in names:
            return
        if 1 <= len(names["list_id"]) <= LONGEST_LIST_ID and next(self._listed) % 2:
            names["list_id"] = read(self._client.get("/recommendations"))["listId"]
            _name_video(case.body, self._others)

    def _makers(self, case: schemathesis.Case[Any]) -> dict[str, Callable[[], str]]:
        ends = case.method == "DELETE"
        return {
            "video_id": lambda: upload(self._client) if ends else self._video,
            "upload_id": lambda: self._upload(sent=case.path.endswith(("/complete", "/s3"))),
            # Nobody restores or approves what is their own.
            "comment_id": lambda: (
                self._untranslated()
                if case.path.endswith("/retry")
                else self._comment(
                    self._other if case.path.endswith(("/restore", "/approve")) else self._client
                )
            ),
            "operation_id": lambda: self._checked,
            "report_id": self._report,
            "revocation_id": self._revocation,
            "stream_id": lambda: self._video,
            "webhook_id": lambda: self._webhook() if ends else self._kept_webhook,
        }

    def _comment(self, client: httpx.Client) -> str:
        path = f"/videos/{self._video}/comments"
        return str(read(client.post(path, json={"content": "first"}))["commentId"])

    def _untranslated(self) -> str:
        """A comment that nobody could translate: there is no language model."""
        path = f"/videos/{self._video}/comments"
        comment = read(self._client.post(path, json={"content": "¡Qué bonito es este vídeo!"}))
        shown = f"/comments/{comment['commentId']}"
        eventually(lambda: '"translationStatus":"skipped"' in self._client.get(shown).text)
        return str(comment["commentId"])

    def _report(self) -> str:
        comment = self._comment(self._client)
        told = self._other.post(f"/comments/{comment}/report", json={"reason": "spam"})
        assert told.status_code == 202, told.text
        return str(case_id(UUID(comment)))

    def _revocation(self) -> str:
        body = {"jti": f"of no token {next(self._revoked)}", "reason": "a test"}
        return str(read(self._client.post("/admin/revocations", json=body))["revocationId"])

    def _webhook(self) -> str:
        # A name that every resolver knows to be nobody's.
        body = {"url": "https://hooks.invalid/", "topics": ["user.forgotten"]}
        return str(read(self._client.post("/admin/webhooks", json=body))["webhookId"])

    def _operation(self) -> str:
        answer = self._client.post("/projections/likes/completeness")
        path = f"/operations/{answer.json()['operationId']}"
        seen = {"Backlot-Min-Position": answer.headers["Backlot-Position"]}
        return str(read(self._client.get(path, headers=seen))["operationId"])

    def _upload(self, *, sent: bool) -> str:
        content = b"0123456789"
        started = start(self._client, content)
        read(self._client.get(f"/uploads/{started['uploadId']}"))
        if sent:
            send_parts(started, content)
        return str(started["uploadId"])

    def _signed_url(self, method: str) -> str:
        if method == "PUT":
            return str(start(self._client, PART)["parts"][0]["url"])
        return str(read(self._client.post(f"/videos/{self._video}/watch"))["url"])


def _name_video(body: object, video: str) -> None:
    """Put a video in the place of each that a body names, and leave the rest as wrong as it is."""
    if not isinstance(body, dict):
        return
    if _is_uuid(body.get("videoId")):
        body["videoId"] = video
    if isinstance(listed := body.get("videoIds"), list):
        body["videoIds"] = [video if _is_uuid(each) else each for each in listed]


def _is_uuid(text: object) -> bool:
    try:
        UUID(str(text))
    except ValueError:
        return False
    return True


schemathesis.serializer.alias(BYTES, "application/octet-stream")
world = World()


@schemathesis.hook
def before_add_examples(context: schemathesis.HookContext, examples: list[Any]) -> None:
    """Try what real users have sent, one input at a time, in the member that it is for."""
    given = [one for one in examples if isinstance(one.body, dict)]
    for example in given[:1]:
        examples += [
            example.operation.Case(
                body={**example.body, member: real.text},
                path_parameters=dict(example.path_parameters),
                media_type=example.media_type,
            )
            for member in sorted(example.body.keys() & REAL.keys())
            for kind in REAL[member]
            for real in real_inputs(kind)
        ]


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict[str, Any]) -> None:
    world.place(case)
    world.answer(case)
    world.hurry(case)
    world.recommend(case)
    world.prove(case)
    world.forget(case)
    world.rename(case)
    world.leave_out(case)
    world.append(case)


@schemathesis.check
def every_header_is_documented(ctx: object, response: Any, case: schemathesis.Case[Any]) -> None:
    """No answer has a header that the document does not give it."""
    document = case.operation.schema.raw_schema
    operation = document["paths"][case.path].get(case.method.lower(), {"responses": {}})
    answer = operation["responses"].get(str(response.status_code))
    if answer is not None:
        documented = {name.lower() for name in follow(document, answer)["headers"]}
        assert {*response.headers} - OF_EVERY_ANSWER - documented == set()


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: Any, response: Any) -> None:
    with Path(os.environ["CONTRACT_SEEN"]).open("a") as seen:
        seen.write(f"{case.method} {case.path} {response.status_code}\n")
