"""Webhooks of the started program: added, verified, refused, forgotten, by HTTP and by command."""

from __future__ import annotations

import base64
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.support import eventually, unused_port

LOOPBACK = {"WEBHOOK_ALLOW_HTTP": "true", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}


class Receiver(ThreadingHTTPServer):
    """Takes deliveries, and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", unused_port()), Handler)
        self.status = 204
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.tried: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def events(self, topic: str) -> list[dict[str, Any]]:
        found = [json.loads(body) for _, body in self.taken]
        return [each for each in found if each["type"] == topic]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.tried.append(headers["webhook-id"])
        if self.server.status < 300:
            self.server.taken.append((headers, body))
        self.send_response(self.server.status)
        # Where nobody may follow it.
        self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def added(admin: httpx.Client, url: str, *topics: str) -> str:
    body = {"url": url, "topics": list(topics)}
    answer = admin.post("/admin/webhooks", json=body, headers={"Idempotency-Key": url})
    assert answer.status_code == 201, answer.text
    assert "whsec_" not in answer.text
    return str(answer.json()["webhookId"])


def secret_of(admin: httpx.Client, webhook: str) -> bytes:
    answer = admin.get(f"/admin/webhooks/{webhook}/secret")
    assert answer.headers["Cache-Control"] == "no-store"
    return base64.b64decode(answer.json()["secrets"][0]["secret"].removeprefix("whsec_"))


def assert_signed(headers: dict[str, str], body: bytes, secret: bytes) -> None:
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.digest(secret, signed, "sha256")
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_what_happens_is_delivered_and_forgotten_persons_are_told_without_their_texts(
    make_program: Callable[..., Program], receiver: Receiver
) -> None:
    program = make_program(**LOOPBACK)
    program.module = "tests.e2e.hasty_erasure"
    program.start()
    admin, ann = program.client("olga", admin=True), program.client("ann")
    video = upload(program.client("owner"))
    hook = added(admin, receiver.url, "comment.created", "video.liked", "user.forgotten")
    read(ann.put(f"/videos/{video}/like"))
    eventually(lambda: receiver.taken)
    headers, body = receiver.taken[0]
    assert_signed(headers, body, secret_of(admin, hook))
    liked = json.loads(body)
    assert (liked["type"], liked["id"]) == ("video.liked", headers["webhook-id"])
    service = program.client("svc", roles=["service"])
    assert liked in service.get("/events?topics=video.liked").json()

    # A redirect is no answer, and nobody follows it.
    receiver.status = 307
    read(ann.post(f"/videos/{video}/comments", json={"content": "my secret text"}))
    waiting = f"/admin/webhooks/{hook}/deliveries?status=waiting"
    eventually(lambda: [each for each in deliveries(admin, waiting) if each.get("answer") == 307])
    assert admin.delete("/users/ann").status_code == 202
    forgetting = "/users/ann/forgetting"
    eventually(lambda: "forgottenAt" in admin.get(forgetting).json())
    receiver.status = 204
    assert admin.patch(f"/admin/webhooks/{hook}", json={"enabled": True}).status_code == 200
    eventually(lambda: receiver.events("user.forgotten"))
    eventually(lambda: receiver.events("comment.created"))
    assert all(b"my secret text" not in body for _, body in receiver.taken)

    # By command: another try, once more, and the end.
    run = program.run("webhooks", "test", hook, "--json")
    assert run.returncode == 0, run.stderr
    eventually(lambda: receiver.events("webhook.test"))
    listed = json.loads(program.run("webhooks", "list", "--json").stdout)
    assert [(each["webhookId"], each["enabled"]) for each in listed] == [(hook, True)]
    shown = json.loads(program.run("webhooks", "secret", hook, "--json").stdout)
    secret = shown["secrets"][0]["secret"]
    assert base64.b64decode(secret.removeprefix("whsec_")) == secret_of(admin, hook)
    all_ = eventually(lambda: delivered(admin, hook, 4))
    one = next(each for each in all_ if each["topic"] == "video.liked")
    run = program.run("webhooks", "repeat", hook, str(one["deliveryId"]))
    assert run.returncode == 0, run.stderr
    eventually(
        lambda: [headers["webhook-id"] for headers, _ in receiver.taken].count(liked["id"]) == 2
    )
    path = f"/admin/webhooks/{hook}/deliveries"
    assert admin.post(f"{path}/{one['deliveryId']}/repeat").status_code == 202
    eventually(
        lambda: [headers["webhook-id"] for headers, _ in receiver.taken].count(liked["id"]) == 3
    )
    eventually(lambda: not deliveries(admin, waiting))
    problem(admin.post(f"{path}/{one['deliveryId']}/skip"), 409, "conflict")
    problem(admin.post(f"{path}/999999/repeat"), 404, "not-found")

    # What is refused is given up, and what waits behind it goes on.
    receiver.status = 422
    read(program.client("bob").put(f"/videos/{video}/like"))
    (stuck,) = eventually(
        lambda: [each for each in deliveries(admin, waiting) if each.get("answer") == 422]
    )
    told = read(admin.get(f"/admin/webhooks/{hook}"))
    assert (told["waiting"], told["oldestAt"]) == (1, stuck["recordedAt"])
    assert [told] == read(admin.get("/admin/webhooks"))["items"]
    read(program.client("cid").put(f"/videos/{video}/like"))
    asked = admin.post(f"{path}/{stuck['deliveryId']}/skip")
    assert (asked.status_code, asked.json()["deliveryId"]) == (202, stuck["deliveryId"])
    (skipped,) = eventually(lambda: deliveries(admin, f"{path}?status=skipped"))
    assert skipped["deliveryId"] == stuck["deliveryId"]
    receiver.status = 204
    assert admin.patch(f"/admin/webhooks/{hook}", json={"enabled": True}).status_code == 200
    eventually(lambda: not deliveries(admin, waiting))
    ids = [headers["webhook-id"] for headers, _ in receiver.taken]
    assert stuck["messageId"] not in ids
    assert deliveries(admin, f"{path}?limit=1")[0]["messageId"] in ids
    assert (
        f'backlot_webhook_lag_events{{webhook="{hook}"}}'
        in plain.get(f"{program.url}/metrics").text
    )
    assert program.run("webhooks", "remove", hook, "--yes").returncode == 0
    assert problem(admin.get(f"/admin/webhooks/{hook}"), 404)["type"] == "not-found"
    # No secret is anywhere in the log.
    assert secret not in admin.get("/audit/events?aggregate=webhooks&payload=full").text
    assert program.stop() == 0


def deliveries(admin: httpx.Client, path: str) -> list[dict[str, Any]]:
    return list(read(admin.get(path))["items"])


def delivered(admin: httpx.Client, hook: str, count: int) -> list[dict[str, Any]]:
    found = deliveries(admin, f"/admin/webhooks/{hook}/deliveries?status=delivered")
    return found if len(found) >= count else []


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example/", "https://127.0.0.1/", "https://2130706433/", "https://[::1]/"),
        *("https://169.254.169.254/latest/meta-data", "https://[::ffff:10.0.0.1]/", "nothing"),
    ],
)
def test_a_url_within_is_refused(server: Program, url: str) -> None:
    admin = server.client("olga", admin=True)
    body = {"url": url, "topics": ["video.liked"]}
    refused = problem(admin.post("/admin/webhooks", json=body), 422)
    assert "`url`" in refused["detail"]
    assert server.run("webhooks", "add", url).returncode == 4


def test_what_is_wrong_is_named(server: Program) -> None:
    admin = server.client("olga", admin=True)
    body = {"url": "https://hooks.example/", "topics": ["video.loved"]}
    refused = problem(admin.post("/admin/webhooks", json=body), 422)
    assert "'video.loved'" in refused["detail"]
    assert "video.unliked" in refused["detail"]
    wrong = {**body, "topics": ["video.liked"], "after": "nowhere"}
    problem(admin.post("/admin/webhooks", json=wrong), 422)
    assert problem(server.client("ann").get("/admin/webhooks"), 403)


def test_by_default_a_name_of_this_machine_is_never_called(
    server: Program, receiver: Receiver
) -> None:
    admin, ann = server.client("olga", admin=True), server.client("ann")
    # The name is one that may be anybody's, until it is resolved.
    hook = added(admin, f"https://localhost:{receiver.server_address[1]}/", "video.liked")
    read(ann.put(f"/videos/{upload(server.client('owner'))}/like"))
    path = f"/admin/webhooks/{hook}/deliveries"
    (failed,) = eventually(lambda: [each for each in deliveries(admin, path) if "error" in each])
    assert "not on the internet" in failed["error"]
    assert receiver.tried == []
    assert admin.delete(f"/admin/webhooks/{hook}").status_code == 200
