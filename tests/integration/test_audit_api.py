"""The audit over HTTP: who may ask, what each answer says, and what odd questions come to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from structlog.testing import capture_logs

from domain.comment import Comment
from domain.model import Origin
from domain.upload import Upload
from engine.inspection.index import Audit
from engine.installation import install
from engine.log import event_id
from infra import security_log
from infra.http.auth import mint_token
from tests.integration.audit_support import index
from tests.integration.projection_support import origin
from tests.integration.readapi_support import SECRET, Site

AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    """A read API on a log whose index a test makes itself, or leaves behind."""
    site = Site(database_url, tmp_path)
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn, [Audit()])
    yield site
    site.close()


def ask(site: Site, path: str, role: str = "admin", **params: Any) -> httpx.Response:
    token = mint_token(SECRET, "olga", [role])
    headers = {"Authorization": f"Bearer {token}"}
    return site.get(path, fresh=False, headers=headers, **params)


def told(site: Site, path: str, role: str = "admin", **params: Any) -> Any:
    answer = ask(site, path, role, **params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def story(site: Site) -> tuple[Upload, Comment]:
    """A video whose comment is posted, edited and translated; the translation has a cause."""
    upload = site.writer.video("ann", title="Rain")
    comment = Comment.blank(uuid4())
    comment.post(upload.id, "Bonito", Origin("bob", AT, "first", "first"))
    comment.edit("Bonita", Origin("bob", AT + timedelta(hours=1), "second", "second"))
    because = str(event_id(comment.id, 2))
    later = Origin("translation", AT + timedelta(hours=2), "second", because)
    comment.translate(2, "es", "en", "Pretty", "model", "prompt", later)
    site.writer.save(comment)
    return upload, comment


@pytest.mark.parametrize(
    "path",
    ["/audit/events", "/audit/events/1", f"/audit/streams/{UUID(int=1)}", "/audit/trace/x",
     "/audit/stats"],
)  # fmt: skip
def test_only_auditors_and_admins_may_ask(site: Site, path: str) -> None:
    assert site.get(path, fresh=False).status_code == 401
    refused = site.get(path, "alice", fresh=False)
    assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
    assert ask(site, path, "auditor").status_code in (200, 404)
    assert ask(site, path, "admin").status_code in (200, 404)


def test_full_payloads_are_for_admins(site: Site) -> None:
    story(site)
    by_default = told(site, "/audit/events/3", "auditor")
    assert by_default["payloadMode"] == "masked"
    assert by_default["payload"]["content"] == "<string 6>"
    assert by_default["actor"] == "<string 3>"
    assert ask(site, "/audit/events/3", "auditor", payload="full").status_code == 403
    assert "payload" not in told(site, "/audit/events/3", "auditor", payload="none")
    assert told(site, "/audit/events/3")["payload"]["content"] == "Bonito"
    assert told(site, "/audit/events/3", payload="masked")["payload"]["content"] == "<string 6>"


@pytest.mark.parametrize(
    ("role", "params", "expected"),
    [
        ("admin", {}, {"mode": "full", "actor": ""}),
        ("admin", {"payload": "masked"}, None),
        ("auditor", {}, None),
        ("auditor", {"actor": "bob"}, {"mode": "masked", "actor": "bob"}),
    ],
)
def test_reads_of_personal_data_are_told(
    site: Site, role: str, params: dict[str, str], expected: dict[str, str] | None
) -> None:
    security_log.SECURITY_LOG.flush()
    with capture_logs() as lines:
        ask(site, "/audit/events", role, **params)
    found = [line for line in lines if line["event"] == "security"]
    assert len(found) == (expected is not None)
    for line in found:
        assert (line["kind"], line["subject"]) == ("personal_data_read", "olga")
        assert line.items() >= {"path": "/audit/events", **(expected or {})}.items()


def test_an_auditor_who_asks_for_more_is_told(site: Site) -> None:
    security_log.SECURITY_LOG.flush()
    with capture_logs() as lines:
        assert ask(site, "/audit/events", "auditor", payload="full").status_code == 403
    (line,) = [line for line in lines if line["event"] == "security"]
    assert (line["kind"], line["subject"], line["roles"]) == ("role_refused", "olga", "auditor")


def test_what_an_actor_is_is_shown(site: Site) -> None:
    story(site)
    kinds = {each["actor"]: each["actorKind"] for each in told(site, "/audit/events")["items"]}
    assert kinds["bob"] == "user"
    assert kinds["translation"] == "system"


@pytest.mark.parametrize("indexed", [False, True])
def test_one_event_with_what_stands_around_it(site: Site, indexed: bool) -> None:
    upload, comment = story(site)
    if indexed:
        index(site.database_url)
    edited = told(site, "/audit/events/4")
    assert edited == {
        "position": 4,
        "id": str(event_id(comment.id, 2)),
        "streamId": str(comment.id),
        "version": 2,
        "topic": "comment.edited.v1",
        "type": "comment.edited",
        "aggregate": "comment",
        "recordedAt": "2026-11-22T10:30:00Z",
        "actor": "bob",
        "actorKind": "user",
        "correlationId": "second",
        "causationId": "second",
        "payload": {
            "video_id": str(upload.id),
            "author": "bob",
            "parent_id": None,
            "content": "Bonita",
        },
        "payloadMode": "full",
        "previous": {
            "position": 3,
            "id": str(event_id(comment.id, 1)),
            "topic": "comment.posted.v1",
        },
        "next": {
            "position": 5,
            "id": str(event_id(comment.id, 3)),
            "topic": "comment.translated.v1",
        },
        "causedBy": {"kind": "request", "id": "second"},
        "caused": [
            {
                "position": 5,
                "id": str(event_id(comment.id, 3)),
                "topic": "comment.translated.v1",
            }
        ],
    }
    assert told(site, "/audit/events/5")["causedBy"] == {
        "kind": "event",
        "id": edited["id"],
        "position": 4,
        "topic": "comment.edited.v1",
    }


@pytest.mark.parametrize("indexed", [False, True])
def test_a_trace_is_a_tree(site: Site, indexed: bool) -> None:
    _, comment = story(site)
    if indexed:
        index(site.database_url)
    trace = told(site, "/audit/trace/second", "auditor")
    assert (trace["correlationId"], trace["events"], trace["truncated"]) == ("second", 2, False)
    root = trace["root"]
    assert (root["kind"], root["id"], root["at"]) == ("request", "second", "2026-11-22T10:30:00Z")
    (edited,) = root["children"]
    assert (edited["kind"], edited["position"], edited["actor"]) == ("event", 4, "<string 3>")
    (translated,) = edited["children"]
    first = told(site, "/audit/trace/second", "auditor", limit=1)
    assert (first["events"], first["truncated"]) == (1, True)
    assert first["root"]["children"] == [edited | {"children": []}]
    assert (translated["topic"], translated["streamId"]) == (
        "comment.translated.v1",
        str(comment.id),
    )


def test_a_stream_at_a_version_and_at_a_time(site: Site) -> None:
    _, comment = story(site)
    path = f"/audit/streams/{comment.id}"
    whole = told(site, path)
    assert [item["version"] for item in whole["items"]] == [1, 2, 3]
    assert whole["items"][1]["changed"] == {
        "content": {"from": "Bonito", "to": "Bonita"},
        "revision": {"from": 1, "to": 2},
        "writtenAt": whole["items"][1]["changed"]["writtenAt"],
    }
    assert (whole["state"]["version"], whole["state"]["fields"]["content"]) == (3, "Bonita")
    first = told(site, path, atVersion=1)
    assert [item["version"] for item in first["items"]] == [1]
    assert first["state"]["fields"]["content"] == "Bonito"
    moment = (AT + timedelta(minutes=60)).isoformat()
    assert told(site, path, atTime=moment)["state"]["version"] == 2
    for params, why in (
        ({"atVersion": 4}, "3 versions only"),
        ({"atTime": (AT - timedelta(days=1)).isoformat()}, "no event up to that time"),
    ):
        missing = ask(site, path, **params)
        assert missing.status_code == 404
        assert why in missing.json()["detail"]


def test_a_long_stream_comes_in_pages_that_fit_together(site: Site) -> None:
    comment = Comment.blank(uuid4())
    comment.post(uuid4(), "0", origin("bob"))
    for number in range(1, 1100):
        comment.edit(str(number), origin("bob"))
    site.writer.save(comment)
    versions: list[int] = []
    more: dict[str, str] = {}
    for _ in range(6):
        page = told(site, f"/audit/streams/{comment.id}", limit=200, **more)
        assert page["state"]["fields"]["content"] == "1099"
        versions += [item["version"] for item in page["items"]]
        assert page["items"][-1]["changed"]["content"]["to"] == str(versions[-1] - 1)
        more = {"cursor": page.get("nextCursor", "")}
    assert more == {"cursor": ""}
    assert versions == list(range(1, 1101))


def test_a_list_by_filters_in_pages(site: Site) -> None:
    upload, _ = story(site)
    index(site.database_url, 3)
    everything = told(site, "/audit/events", order="asc", limit=2)
    assert [item["position"] for item in everything["items"]] == [1, 2]
    rest = told(site, "/audit/events", order="asc", cursor=everything["nextCursor"])
    assert [item["position"] for item in rest["items"]] == [3, 4, 5]
    assert "nextCursor" not in rest

    def positions(**params: Any) -> list[int]:
        return [item["position"] for item in told(site, "/audit/events", **params)["items"]]

    assert positions(type=["comment", "upload.completed.v1"]) == [5, 4, 3, 2]
    assert positions(aggregate="comment", actor="bob") == [4, 3]
    assert positions(stream=str(upload.id)) == [2, 1]
    assert positions(correlationId="second") == [5, 4]
    assert positions(**{"from": "2026-11-22T11:30:00+01:00", "to": "2026-11-22T11:30:00Z"}) == [4]
    assert positions(after=1, before=4) == [3, 2]
    assert positions(actor="nobody") == []


def test_what_the_log_holds(site: Site) -> None:
    story(site)
    index(site.database_url, 3)
    stats = told(site, "/audit/stats", "auditor")
    assert (stats["events"], stats["streams"], stats["head"], stats["indexed"]) == (5, 2, 5, 3)
    assert stats["aggregates"] == [
        {"aggregate": "comment", "events": 3},
        {"aggregate": "upload", "events": 2},
    ]
    assert {each["topic"]: each["events"] for each in stats["topics"]} == {
        "upload.started.v2": 1,
        "upload.completed.v1": 1,
        "comment.posted.v1": 1,
        "comment.edited.v1": 1,
        "comment.translated.v1": 1,
    }
    assert {"day": "2026-11-22", "events": 3} in stats["days"]
    assert stats["unreadable"] == 0
    index(site.database_url)
    again = told(site, "/audit/stats")
    for name in ("events", "streams", "firstAt", "lastAt", "stateBytes", "topics", "days"):
        assert again[name] == stats[name], name


@pytest.mark.parametrize(
    ("path", "params", "status", "slug"),
    [
        ("/audit/events/77", {}, 404, "not-found"),
        ("/audit/events/0", {}, 422, "invalid"),
        ("/audit/events/99999999999999999999", {}, 422, "invalid"),
        ("/audit/events/first", {}, 422, "invalid"),
        (f"/audit/streams/{UUID(int=7)}", {}, 404, "not-found"),
        ("/audit/streams/7", {}, 422, "invalid"),
        (f"/audit/streams/{UUID(int=7)}", {"atVersion": 0}, 422, "invalid"),
        (f"/audit/streams/{UUID(int=7)}", {"atTime": "2026-11-22T09:30:00"}, 422, "invalid"),
        ("/audit/trace/unheard-of", {}, 404, "not-found"),
        ("/audit/trace/a%00b", {}, 422, "invalid"),
        ("/audit/events", {"limit": 201}, 422, "invalid"),
        ("/audit/events", {"order": "up"}, 422, "invalid"),
        ("/audit/events", {"stream": "x"}, 422, "invalid"),
        ("/audit/events", {"from": "yesterday"}, 422, "invalid"),
        ("/audit/events", {"to": 0.5}, 422, "invalid"),
        ("/audit/events", {"from": "0001-01-01T00:00:00+14:00"}, 200, None),
        ("/audit/events", {"to": "9999-12-31T23:59:59-14:00"}, 200, None),
        ("/audit/events", {"actor": "a\x00b"}, 422, "invalid"),
        ("/audit/events", {"type": ["", "x"]}, 422, "invalid"),
        ("/audit/events", {"payload": "some"}, 422, "invalid"),
        ("/audit/events", {"cursor": "x"}, 422, "cursor-invalid"),
        ("/audit/events", {"before": -1}, 422, "invalid"),
    ],
)
def test_an_odd_question_gets_its_answer(
    site: Site, path: str, params: dict[str, Any], status: int, slug: str | None
) -> None:
    answer = ask(site, path, **params)
    assert (answer.status_code, answer.json().get("type")) == (status, slug), answer.text
    kind = "application/problem+json" if slug else "application/json"
    assert answer.headers["content-type"] == kind


def test_a_cursor_of_the_other_order_is_refused(site: Site) -> None:
    story(site)
    cursor = told(site, "/audit/events", order="asc", limit=1)["nextCursor"]
    assert ask(site, "/audit/events", order="desc", cursor=cursor).status_code == 422
