"""Every route, called by nobody, a user, another one, an auditor, a moderator and an admin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.data_folder import secret_path
from infra.http.auth import mint_token
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import read, see, start, upload
from tests.routes import ROUTES, As, Line
from tests.support import eventually, unused_port

CONVERSATION = "of-one-comment"
# Whose things they are has no role.
CALLERS = {
    As.USER: ("ann", []),
    As.OTHER: ("bob", []),
    As.AUDITOR: ("aud", ["auditor"]),
    As.MODERATOR: ("mod", ["moderator"]),
    As.SERVICE: ("svc", ["service"]),
    As.ADMIN: ("olga", ["admin"]),
}


@dataclass
class Things:
    """What the names in paths and bodies stand for; all of it belongs to Ann."""

    ann: httpx.Client

    def __post_init__(self) -> None:
        video = upload(self.ann)
        self.names: dict[str, str] = {
            "video_id": video,
            "upload_id": start(self.ann)["uploadId"],
            "comment_id": self._comment(video),
            "name": "no-such-projection",
            "position": "1",
            "stream_id": video,
            "correlation_id": "of-no-conversation",
            "operation_id": str(uuid4()),
            "revocation_id": str(uuid4()),
            "webhook_id": str(uuid4()),
            "delivery_id": "1",
            "letter_id": "1",
            "task_id": "of-no-task",
            "number": "1",
            "report_id": str(uuid4()),
            "user_id": "mallory",
            "key:path": f"videos/{video}",
        }
        recommended = eventually(self._recommended) or {}
        self.names["list_id"] = recommended["listId"]
        self.names["listed_id"] = recommended["items"][0]["video"]["videoId"]

    def renew(self, line: Line) -> None:
        """Make anew what the line's call has used up."""
        if "{comment_id}" in line.call:
            self.names["comment_id"] = self._comment(self.names["video_id"])
        elif "{upload_id}" in line.call:
            self.names["upload_id"] = start(self.ann)["uploadId"]
        else:
            assert "{video_id}" in line.call, f"renew: say how for {line.call}"
            video = self.names["video_id"] = upload(self.ann)
            # A video takes its comments with it.
            self.names["comment_id"] = self._comment(video)

    def fill(self, text: str) -> str:
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def _comment(self, video: str) -> str:
        headers = {"X-Request-Id": CONVERSATION}
        posted = self.ann.post(
            f"/videos/{video}/comments", json={"content": "Rain"}, headers=headers
        )
        see(self.ann, posted)
        return str(read(posted)["commentId"])

    def _recommended(self) -> dict[str, Any] | None:
        answer = read(self.ann.get("/recommendations"))
        return answer if answer["items"] else None


@pytest.fixture(scope="module")
def callers(server: Program) -> Mapping[As, httpx.Client]:
    secret = secret_path(server.data).read_text().strip()
    clients = {As.NONE: server.client()}
    for caller, (user, roles) in CALLERS.items():
        clients[caller] = server.client()
        clients[caller].headers["Authorization"] = f"Bearer {mint_token(secret, user, roles)}"
    return clients


@pytest.fixture(scope="module")
def things(server: Program, callers: Mapping[As, httpx.Client]) -> Things:
    for number in range(3):
        upload(server.client(f"owner-{number}"))
    # Who is named in paths was here before.
    read(server.client("mallory").get("/videos"))
    return Things(callers[As.USER])


@pytest.mark.parametrize("line", ROUTES, ids=lambda line: line.call)
def test_the_walk(line: Line, callers: Mapping[As, httpx.Client], things: Things) -> None:
    """The callers who may not go first: what they do must have changed nothing."""
    for caller in sorted(As, key=lambda each: each in line.may):
        status = call(callers[caller], line, things)
        assert status == line.expected(caller), caller
        if line.spends and caller in line.may:
            things.renew(line)


def call(client: httpx.Client, line: Line, things: Things) -> int:
    """The status of an answer."""
    return head_of(client, line, things).status_code


def head_of(
    client: httpx.Client, line: Line, things: Things, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """An answer without its body, which may be a stream without an end."""
    template = line.call
    for name, other in line.names.items():
        template = template.replace(f"{{{name}}}", other)
    method, _, path = things.fill(template).partition(" ")
    sent = {**line.headers, **(headers or {})}
    options: dict[str, Any] = {"params": dict(line.query), "headers": sent}
    if line.body is not None:
        options["json"] = json.loads(things.fill(json.dumps(line.body)))
    with client.stream(method, path, **options) as answer:
        return answer


READS = [line for line in ROUTES if line.call.startswith("GET ")]
OF_THE_PROCESS = {
    *("GET /healthz", "GET /readyz", "GET /metrics"),
    *("GET /openapi.json", "GET /docs", "GET /docs/static"),
}
# Whoever has them may not use them again: a stream, what is published behind a position, what is
# told to the security log each time, lists that are named when something of them is chosen, and
# how far an upload is.
NOT_KEPT = {
    *("GET /events", "GET /tus/uploads/{upload_id}", "GET /uploads/{upload_id}/s3"),
    *("GET /videos/{video_id}/events", "GET /recommendations", "GET /videos/recommendations"),
    *("GET /users/{user_id}/certificate",),
    *("GET /users/{user_id}/export", "GET /users/{user_id}/pseudonym"),
}
# What says by itself of when it is, and what is no matter of the log.
WITHOUT_POSITION = {
    "GET /tus/uploads/{upload_id}",
    *("GET /audit/verify", "GET /users/me", "GET /users/{user_id}/forgetting"),
    *("GET /users/{user_id}/certificate",),
    *("GET /users/{user_id}/export", "GET /users/{user_id}/pseudonym"),
}


@pytest.mark.parametrize("line", READS, ids=lambda line: line.call)
def test_answers_say_who_may_keep_them_and_how_far_they_are(
    line: Line, callers: Mapping[As, httpx.Client], things: Things
) -> None:
    known = {"name": "likes", "correlation_id": CONVERSATION}
    line = replace(line, names={**known, **line.names})
    for caller in As:
        answer = head_of(callers[caller], line, things)
        stored = answer.headers.get("Cache-Control", "")
        if not answer.is_success:
            assert stored == "no-store" or answer.is_redirect
            continue
        if line.call in OF_THE_PROCESS:
            assert stored == "no-store"
            continue
        assert ("Backlot-Position" in answer.headers) is (line.call not in WITHOUT_POSITION)
        if line.call in NOT_KEPT:
            assert (stored, "ETag" in answer.headers) == ("no-store", False)
            continue
        # Who has a token may be told what others are not.
        public = caller is As.NONE
        assert stored == ("public, no-cache" if public else "private, no-cache")
        assert "Authorization" in answer.headers["Vary"]

        def again(line: Line = line, caller: As = caller) -> int:
            """What is asked with the tag of an answer that came before."""
            first = head_of(callers[caller], line, things)
            tag = {"If-None-Match": first.headers["ETag"]}
            return head_of(callers[caller], line, things, tag).status_code

        # Some tell of the moment, which goes on between two questions.
        assert eventually(lambda: again() == 304)


def test_what_changes_something_is_kept_by_nobody(
    callers: Mapping[As, httpx.Client], things: Things
) -> None:
    for line in ROUTES:
        if line.call.startswith(("POST", "PUT", "PATCH")):
            answer = head_of(callers[As.USER], line, things)
            assert answer.headers["Cache-Control"] == "no-store", line.call


def test_with_an_admin_port_the_public_one_has_nothing_for_operators(
    make_program: Any,
) -> None:
    port = unused_port()
    program: Program = make_program(ADMIN_PORT=str(port)).start()
    secret = secret_path(program.data).read_text().strip()
    admin = {"Authorization": f"Bearer {mint_token(secret, 'olga', ['admin'])}"}
    for path in ("/admin/revocations", "/audit/events", "/projections", "/metrics"):
        hidden = plain.get(program.url + path, headers={**admin, "Host": f"127.0.0.1:{port}"})
        assert (hidden.status_code, hidden.json()["type"]) == (404, "not-found")
        assert plain.get(f"http://127.0.0.1:{port}{path}", headers=admin).status_code == 200
    for url in (program.url, f"http://127.0.0.1:{port}"):
        assert plain.get(f"{url}/healthz").status_code == 200
        assert plain.get(f"{url}/readyz").status_code == 200
    assert plain.get(f"{program.url}/videos").status_code == 200
    assert plain.get(f"http://127.0.0.1:{port}/videos", headers=admin).status_code == 404


def test_a_revoked_token_is_refused_until_that_is_taken_back(server: Program) -> None:
    admin, stolen = server.client("olga", admin=True), server.client("mallory")
    assert stolen.get("/videos/liked").status_code == 200
    body = {"userId": "mallory", "reason": "stolen laptop"}
    made = admin.post("/admin/revocations", json=body, headers={"Idempotency-Key": "once"})
    assert made.status_code == 201, made.text
    again = admin.post("/admin/revocations", json=body, headers={"Idempotency-Key": "once"})
    assert again.json() == made.json()
    refused = eventually(
        lambda: (found := stolen.get("/videos/liked")).status_code == 401 and found
    )
    assert isinstance(refused, httpx.Response)
    assert refused.json()["detail"] == "The token was refused: token is revoked; get a new one."
    assert made.json() in read(admin.get("/admin/revocations"))["items"]
    revocation = made.json()["revocationId"]
    assert admin.delete(f"/admin/revocations/{revocation}").status_code == 200
    eventually(lambda: stolen.get("/videos/liked").status_code == 200)
    assert admin.delete(f"/admin/revocations/{revocation}").status_code == 404
    recorded = read(admin.get("/audit/events", params={"aggregate": "revocations"}))["items"]
    assert [event["type"] for event in recorded][:2] == [
        "revocations.withdrawn",
        "revocations.user_revoked",
    ]
    assert {event["actorKind"] for event in recorded} == {"operator"}


@pytest.mark.parametrize(
    "body",
    [{}, {"jti": "x"}, {"reason": "x"}, {"jti": "x", "userId": "y", "reason": "z"},
     {"jti": "", "reason": "x"}, {"userId": "u" * 129, "reason": "x"}, {"jti": "x", "reason": " "}],
)  # fmt: skip
def test_what_revokes_nothing_is_refused(server: Program, body: dict[str, str]) -> None:
    answer = server.client("olga", admin=True).post("/admin/revocations", json=body)
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid")


def test_refusals_and_reads_of_personal_data_are_in_the_security_log(server: Program) -> None:
    secret = secret_path(server.data).read_text().strip()
    forged = server.client()
    forged.headers["Authorization"] = f"Bearer {mint_token(secret[::-1], 'eve')}"
    for _ in range(50):
        assert forged.get("/videos").status_code == 401
    assert server.client("eve").get("/projections").status_code == 403
    assert server.client("paul", admin=True).get("/audit/events").status_code == 200
    told = [json.loads(line) for line in server.complained.splitlines() if '"security"' in line]
    found = {(line["kind"], line["subject"]) for line in told}
    assert {
        ("token_refused", "127.0.0.1"),
        ("role_refused", server.person("eve")),
        ("personal_data_read", server.person("paul")),
    } <= found
    # A flood is a line or two, and no line has a token.
    assert len([line for line in told if line["kind"] == "token_refused"]) < 10
    assert forged.headers["Authorization"].removeprefix("Bearer ") not in server.complained
