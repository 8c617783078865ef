"""The production shape: the composition's own commands, started at once, behind its proxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from infra.http.auth import mint_token
from infra.postgres.server import EmbeddedPostgres
from infra.settings import Role
from tests.e2e import plain
from tests.e2e.composed import Composed, composed
from tests.e2e.videos import problem, read, see, start, upload
from tests.integration.relay_support import Topics
from tests.kafka_cluster import kafka_cluster
from tests.openai_server import openai_server
from tests.support import DEADLINE_SECONDS, eventually

ROLES = tuple(str(role) for role in Role)
# These keep a page of metrics only.
PAGES = ("tasks",)
PART_BYTES = 5 * 1024 * 1024
FILM = b"a film of two parts " * (PART_BYTES // 20 + 1)


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """host:port of a broker."""
    with kafka_cluster() as cluster:
        yield cluster.bootstrap_servers


@pytest.fixture(scope="module")
def system(short_dir: Path, postgres: EmbeddedPostgres, kafka: str) -> Iterator[Composed]:
    """All roles meet an empty database, and one another, at the same moment."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE composed")
    url = postgres.url_of("composed")
    small = {"PART_SIZE_BYTES": str(PART_BYTES)}
    with ExitStack() as stack:
        model = stack.enter_context(openai_server())
        variables = {**small, "OPENAI_BASE_URL": model.url}
        started = composed(
            short_dir / "composed",
            url,
            ROLES,
            kafka=kafka,
            variables=variables,
        )
        running = stack.enter_context(started)
        yield running
        for role in ROLES:
            assert running.stop(role) == 0, running.logs(role)


@pytest.fixture
def alice(system: Composed) -> httpx.Client:
    return system.client("alice")


@pytest.fixture
def bob(system: Composed) -> httpx.Client:
    return system.client("bob")


def test_a_film_is_uploaded_played_liked_and_discussed(
    system: Composed, alice: httpx.Client, bob: httpx.Client
) -> None:
    started = start(alice, FILM)
    assert len(started["parts"]) == 2
    assert started["parts"][0]["url"].startswith(f"{system.proxy.media_url}/media/videos/")
    video = upload(alice, FILM)
    url = read(bob.post(f"/videos/{video}/watch"))["url"]
    assert url.startswith(system.proxy.media_url)
    assert plain.get(url).content == FILM
    assert plain.get(url, headers={"Range": "bytes=2-5"}).content == FILM[2:6]
    assert read(bob.put(f"/videos/{video}/like")) == {"hasLiked": True, "likesCount": 1}
    see(bob, bob.post(f"/videos/{video}/comments", json={"content": "¡Qué bonito!"}))
    seen = read(bob.get(f"/videos/{video}"))
    assert (seen["likes"], seen["comments"], seen["hasLiked"]) == (1, 1, True)
    (comment,) = read(bob.get(f"/videos/{video}/comments"))["items"]
    assert comment["content"] == "¡Qué bonito!"


def test_a_request_id_goes_through_all_of_it(system: Composed, bob: httpx.Client) -> None:
    video = upload(bob)
    answer = bob.put(f"/videos/{video}/like", headers={"X-Request-Id": "from-the-client"})
    assert answer.headers["X-Request-Id"] == "from-the-client"
    admin = system.operator("queries")
    see(admin, answer)
    found = read(admin.get("/audit/events", params={"correlationId": "from-the-client"}))
    assert len(found["items"]) == 1


def test_live_counts_come_through_the_proxy(system: Composed, alice: httpx.Client) -> None:
    video = upload(alice)
    with system.client().stream("GET", f"/videos/{video}/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert json.loads(next(lines)[6:]) == {"likesCount": 0}
        assert alice.put(f"/videos/{video}/like").status_code == 200
        assert json.loads(next(lines)[6:]) == {"likesCount": 1}


def test_each_side_does_its_own_and_nothing_else(system: Composed) -> None:
    for side, (method, path) in {
        "commands": ("GET", "/videos"),
        "queries": ("POST", "/uploads"),
    }.items():
        address = f"http://{system.processes[side].address}"
        with plain.client(base_url=address) as direct:
            problem(direct.request(method, path), 404)


def test_pages_ask_the_apis_wherever_they_are(system: Composed) -> None:
    token = mint_token(system.secret, "olga", ["admin"])
    with plain.client(base_url=system.base_url) as browser:
        browser.post("/login", data={"token": token, "next": "/studio"})
        assert "olga" in browser.get("/login").text
        # The console is at its own port; what it shows is at the ports of operators of two roles.
        assert browser.get("/console").status_code == 404
        console = browser.get(f"{system.proxy.console_url}/console")
        assert console.status_code == 200, console.text
        assert "Events in the log" in console.text


def test_counters_are_in_the_redis_of_the_composition(system: Composed) -> None:
    for role in set(ROLES) - {*PAGES, "web"}:
        with plain.client(base_url=f"http://{system.processes[role].address}") as direct:
            parts = read(direct.get("/readyz"))["parts"]
        assert parts["redis"]["ok"]
        assert parts["objects"]["ok"]


def test_the_doctor_finds_everything_well(system: Composed) -> None:
    report = system.processes["workers"].run("doctor")
    assert report.returncode == 0, report.stdout
    assert system.secret not in report.stdout


def test_a_token_from_a_container_that_knows_the_secret_is_taken(system: Composed) -> None:
    minted = system.processes["commands"].run("token", "--user", "me", "--admin").stdout.strip()
    authorized = {"Authorization": f"Bearer {minted}"}
    answer = plain.get(f"{system.processes['queries'].admin_url}/projections", headers=authorized)
    assert len(read(answer)["items"]) > 0


@pytest.mark.parametrize(
    "path", ["/admin/revocations", "/audit/events", "/projections", "/metrics", "/operations/x"]
)
def test_what_is_for_operators_can_not_be_reached_from_outside(system: Composed, path: str) -> None:
    authorized = {"Authorization": f"Bearer {mint_token(system.secret, 'olga', ['admin'])}"}
    through = system.client()
    assert through.get(path, headers=authorized).status_code == 404
    assert through.post(path, headers=authorized).status_code == 404
    for role in ("commands", "queries"):
        direct = f"http://{system.processes[role].address}{path}"
        assert plain.get(direct, headers=authorized).status_code == 404


def test_no_role_can_change_what_is_recorded(system: Composed) -> None:
    url = system.processes["commands"].variables["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in (b"DELETE FROM backlot_events", b"UPDATE backlot_seals SET last = 0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement)


def test_a_killed_side_comes_back_and_the_other_goes_on(
    system: Composed, alice: httpx.Client, bob: httpx.Client
) -> None:
    video = upload(alice)
    system.kill("queries")
    problem(alice.get("/videos"), 503, "unavailable")
    assert read(bob.put(f"/videos/{video}/like"))["likesCount"] == 1
    system.start("queries")
    eventually(lambda: alice.get("/videos").status_code == 200)
    system.kill("projections")
    answer = bob.post(f"/videos/{video}/comments", json={"content": "While nobody projects"})
    assert answer.status_code == 201
    system.start("projections")
    see(bob, answer)
    assert len(read(bob.get(f"/videos/{video}/comments"))["items"]) == 1


def test_a_comment_is_translated_by_a_task(alice: httpx.Client, bob: httpx.Client) -> None:
    video = upload(alice)
    text = "¡Qué película tan bonita!"
    see(bob, bob.post(f"/videos/{video}/comments", json={"content": text}))
    eventually(lambda: _first(bob, video)["translationStatus"] != "pending")
    comment = _first(bob, video)
    assert comment["translationStatus"] == "translated"
    assert comment["language"] == "es"
    assert comment["translatedText"] == f"[en] {text}"


def test_what_came_while_nobody_worked_is_done_later(system: Composed, bob: httpx.Client) -> None:
    away = ("relay", "consumers", "tasks")
    for role in away:
        system.kill(role)
    video = upload(bob)
    see(bob, bob.post(f"/videos/{video}/comments", json={"content": "¿Quién trabaja hoy aquí?"}))
    assert _first(bob, video)["translationStatus"] == "pending"
    system.start(*away)
    eventually(lambda: _first(bob, video)["translationStatus"] == "translated")


def _first(client: httpx.Client, video: str) -> dict[str, object]:
    found: dict[str, object] = read(client.get(f"/videos/{video}/comments"))["items"][0]
    return found


def test_what_happens_is_published(system: Composed, kafka: str, bob: httpx.Client) -> None:
    video = upload(bob)
    assert bob.put(f"/videos/{video}/like").status_code == 200
    assert bob.post(f"/videos/{video}/comments", json={"content": "Bonito"}).status_code == 201
    wanted = {"upload.completed", "video.liked", "comment.created"}

    async def published() -> None:
        async with Topics(kafka) as topics, asyncio.timeout(DEADLINE_SECONDS):
            while not wanted <= {r.partition.topic for r in topics.records if _of(r.value, video)}:
                await topics.drain()

    asyncio.run(published())


def _of(value: bytes | None, video: str) -> bool:
    return value is not None and json.loads(value).get("videoId") == video


def test_tasks_tell_their_metrics_and_log_as_everybody_does(system: Composed) -> None:
    page = plain.get(f"http://{system.processes['tasks'].address}/metrics").text
    assert "backlot_tasks" in page
    for role in ROLES:
        lines = system.logs(role).splitlines()
        foreign = [line for line in lines if not line.startswith(("{", "ready: ", "starting "))]
        assert foreign == [], role
