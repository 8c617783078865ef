"""Who watches, over HTTP: one view for a viewer wherever it is told, and URLs that work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.program import Program
from tests.e2e.videos import MP4, problem, read, send_parts, upload
from tests.integration.event_log import rows
from tests.real_inputs import RealInput, real_inputs
from tests.support import eventually, unused_port

SOON = {"ANALYTICS_FLUSH_SECONDS": "0.2", "TRENDING_INVALIDATE_SECONDS": "0.2"}
# Time goes by in tests/integration/test_telemetry.py only.
AT_ONCE = [real for real in real_inputs("watches") if "+" not in real.text]
# What a caller may do again and again with a key, and whose answer has URLs.
RENEWED = {"POST /uploads", "POST /uploads/{upload_id}/part-urls", "POST /videos/{video_id}/watch"}
# Another address than that of the server, which stands in URLs.
ADDRESS = "127.0.0.9"


@pytest.fixture(scope="module")
def open_server(short_dir: Any) -> Iterator[Program]:
    """A program in which viewers need no name."""
    variables = {**SOON, "ANONYMOUS_VIEWERS": "true"}
    program = Program(short_dir / "watching", unused_port(), variables)
    try:
        yield program.start()
        assert program.stop() == 0
    finally:
        program.clean_up()


@pytest.fixture
def watched(open_server: Program) -> str:
    return upload(open_server.client("owner"))


def watch(server: Program, video: str, who: str) -> dict[str, Any]:
    """As a user, or as `-client` without a name."""
    if who.startswith("-"):
        client = server.client()
        client.headers["User-Agent"] = who.removeprefix("-")
    else:
        client = server.client(who)
    return read(client.post(f"/videos/{video}/watch"))


def views_in_stats(client: httpx.Client, video: str) -> int:
    totals = read(client.get(f"/videos/{video}/stats?timeRange=24h"))["totals"]
    return int(totals["views"])


def views_in_trending(client: httpx.Client, video: str) -> int:
    items = read(client.get("/analytics/trending?timeRange=all&limit=100"))["items"]
    points = [item["components"]["views"] for item in items if item["video"]["videoId"] == video]
    return int(sum(points))


@pytest.mark.parametrize("real", AT_ONCE, ids=lambda real: real.text[:30])
def test_a_viewer_is_one_view_in_every_place(
    open_server: Program, watched: str, real: RealInput
) -> None:
    right, reader = int(real.right), open_server.client()
    told = [watch(open_server, watched, who) for who in real.text.split()]
    assert len({one["sessionId"] for one in told}) == right
    assert all(plain.get(one["url"]).content == MP4 for one in told[-2:])
    assert read(reader.get(f"/videos/{watched}"))["views"] == right
    eventually(lambda: views_in_stats(open_server.client("owner"), watched) == right)
    eventually(lambda: views_in_trending(reader, watched) == right)


def test_watch_time_without_a_name_is_that_of_the_session(
    open_server: Program, watched: str
) -> None:
    nobody, path = open_server.client(), f"/videos/{watched}"
    session = read(nobody.post(f"{path}/watch"))["sessionId"]
    body = {"sessionId": session, "seconds": 1}
    for call, told in (("watch-time", body), ("share", {"channel": "mail"})):
        assert nobody.post(f"{path}/{call}", json=told).status_code == 202
    eventually(lambda: views_in_stats(open_server.client("owner"), watched) == 1)
    for call in ("like", "comments"):
        problem(nobody.post(f"{path}/{call}", json={"content": "x"}), 401, "unauthenticated")
    headers = {"Authorization": "Bearer rubbish"}
    problem(nobody.post(f"{path}/watch", headers=headers), 401, "unauthenticated")


def test_where_a_viewer_watched_is_told(open_server: Program, watched: str) -> None:
    nobody, owner = open_server.client(), open_server.client("owner")
    path, last = f"/videos/{watched}", 30
    session = read(nobody.post(f"{path}/watch"))["sessionId"]
    report = {"sessionId": session, "seconds": 0.5, "position": last}

    def points() -> list[dict[str, Any]]:
        """After one more report, of which as much counts as time went by."""
        assert nobody.post(f"{path}/watch-time", json=report).status_code == 202
        told = read(owner.get(f"{path}/stats/retention", params={"timeRange": "24h"}))
        assert told["sessions"] <= 1
        assert "durationSeconds" not in told
        return list(told["points"])

    found = eventually(points)
    assert [point["second"] for point in found] == list(range(last + 1))
    assert [point["watchedSeconds"] > 0 for point in found] == [False] * last + [True]
    assert found[-1]["share"] == found[-1]["watchedSeconds"]
    table = owner.get(f"{path}/stats/retention", headers={"Accept": "text/csv"}).text.splitlines()
    assert table[0] == "second,watchedSeconds,share"
    assert len(table) == last + 2
    problem(nobody.get(f"{path}/stats/retention"), 401, "unauthenticated")


def test_no_address_is_stored(open_server: Program, watched: str) -> None:
    key = {"Idempotency-Key": "of nobody"}
    away = httpx.HTTPTransport(local_address=ADDRESS)
    with plain.client(base_url=open_server.url, transport=away) as nobody:
        first, again = (nobody.post(f"/videos/{watched}/watch", headers=key) for _ in range(2))
    assert again.headers["Idempotency-Replayed"] == "true"
    assert read(first)["sessionId"] == read(again)["sessionId"]
    texts = [ADDRESS, ADDRESS.encode().hex()]
    assert [text for text in texts if is_stored(open_server, text)] == []
    assert ADDRESS not in open_server.said + open_server.complained
    assert is_stored(open_server, watched)


def is_stored(server: Program, text: str) -> bool:
    """Whether any row of any table holds this text."""
    url = server.database_url
    tables = rows(
        url,
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    query = "SELECT 1 FROM {} AS t WHERE strpos(t::text, %s) > 0 LIMIT 1"
    return any(rows(url, query.format(table), [text]) for (table,) in tables)


def test_a_repeat_has_the_same_ids_and_urls_that_work(make_program: Callable[..., Program]) -> None:
    program = make_program(**SMALL_PARTS).start()
    asked = Asked(program, upload(program.client("owner")))
    begin_again(program, URL_TTL_SECONDS="1")
    before = asked.everything()
    assert asked.replayed == [None] * 3
    eventually(lambda: all(map(is_dead, asked.urls)))
    begin_again(program, URL_TTL_SECONDS="3600")
    after = asked.everything()
    assert asked.replayed[3:] == ["true"] * 3
    assert [without_urls(one) for one in after] == [without_urls(one) for one in before]

    watching, begun, parts = after
    assert plain.get(watching["url"]).content == MP4
    send_parts({**begun, "parts": [*parts["parts"], *begun["parts"][1:]]})
    assert read(asked.owner.get(f"/videos/{asked.video}"))["views"] == 1
    done = f"/uploads/{begun['uploadId']}/complete"
    assert read(asked.owner.post(done))["status"] == "completed"
    # The ids are still those, and nothing is left to be sent.
    assert asked.start() == {**begun, "parts": []}
    asked.owner.delete(f"/videos/{asked.video}").raise_for_status()
    problem(asked.watch(), 404, "not-found")


def begin_again(program: Program, **variables: str) -> None:
    assert program.stop() == 0
    program.variables.update(variables)
    program.start()


def is_dead(url: str) -> bool:
    answer = plain.put(url, content=b"") if "partNumber" in url else plain.get(url)
    return "url-expired" in answer.text


class Asked:
    """Every call whose answer has URLs, each always under the same key."""

    def __init__(self, program: Program, video: str) -> None:
        self._program, self.video = program, video
        self.replayed: list[str | None] = []
        self.urls: list[str] = []

    @property
    def owner(self) -> httpx.Client:
        return self._program.client("owner")

    def everything(self) -> list[dict[str, Any]]:
        watching, begun = read(self.watch()), self.start()
        parts = read(self._ask(f"/uploads/{begun['uploadId']}/part-urls", {"numbers": [1]}))
        sent = [*begun["parts"], *parts["parts"]]
        self.urls = [watching["url"], *(part["url"] for part in sent)]
        return [watching, begun, parts]

    def watch(self) -> httpx.Response:
        return self._ask(f"/videos/{self.video}/watch")

    def start(self) -> dict[str, Any]:
        details = {"title": "x", "filename": "x.mp4", "contentType": "video/mp4"}
        return read(self._ask("/uploads", {**details, "sizeBytes": len(MP4)}))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": f"key of {path}"}
        answer = self.owner.post(path, json=body, headers=headers)
        self.replayed.append(answer.headers.get("Idempotency-Replayed"))
        return answer


def without_urls(answer: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same in a repeat."""
    kept = {name: told for name, told in answer.items() if name != "url"}
    if "parts" in kept:
        kept["parts"] = [part["number"] for part in kept["parts"]]
    return kept


def test_every_call_whose_answer_has_urls_is_tried_here(open_server: Program) -> None:
    document = plain.get(f"{open_server.url}/openapi.json").json()
    shapes = document["components"]["schemas"]

    def has_urls(shape: Any) -> bool:
        if isinstance(shape, list):
            return any(map(has_urls, shape))
        if not isinstance(shape, dict):
            return False
        if "$ref" in shape:
            return has_urls(shapes[shape["$ref"].rpartition("/")[2]])
        if {"url", "expiresAt"} & set(shape.get("properties", ())):
            return True
        return any(map(has_urls, shape.values()))

    found = {
        f"POST {path}"
        for path, calls in document["paths"].items()
        for status, answer in calls.get("post", {}).get("responses", {}).items()
        if status.startswith("2") and has_urls(answer.get("content", {}))
    }
    # The URL of a webhook is that of its receiver, and a ticket opens a stream.
    others = {each for each in found if "/webhooks" in each or each.endswith("/ticket")}
    assert found - others == RENEWED
