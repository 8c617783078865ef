"""The attacks that rate limits, quotas and connection limits are for, on the running program."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from infra.http.connections import room_for_connections
from infra.settings.features import RateLimitSettings
from tests.e2e import plain
from tests.e2e.load import Request, together
from tests.e2e.program import Program
from tests.e2e.recorded import Recorded
from tests.e2e.videos import MP4, problem, read, start, upload
from tests.support import DEADLINE_SECONDS, eventually, unused_port

HALF = b"POST /uploads HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bea"
HALF_OPEN = 1_700
# So slow to come back that no machine is slow enough to get another token meanwhile.
LIMITS = {
    "RATE_LIMITS": "on",
    "RATE_LIMIT_WRITE": "0.01/60",
    "RATE_LIMIT_ADDRESS_FACTOR": "1000",
    "QUOTA_OPEN_UPLOADS": "3",
    "QUOTA_LIVE_STREAMS_PER_ADDRESS": "3",
    "QUOTA_LIVE_STREAMS_PER_USER": "2",
    "PART_SIZE_BYTES": str(16 * 1024),
}
_numbers = count(1)


@pytest.fixture(scope="module")
def limited(short_dir: Path) -> Iterator[Program]:
    program = Program(short_dir / f"limited-{next(_numbers)}", unused_port(), LIMITS)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def film_of_alice(limited: Program) -> str:
    return upload(limited.client("alice"))


def test_a_flood_of_likes_is_cut_off_and_what_was_answered_is_recorded(
    limited: Program, film_of_alice: str
) -> None:
    path = f"/videos/{film_of_alice}/like"
    answers = together(limited, [Request("mallory", "POST", path) for _ in range(200)])
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == 140
    for answer in refused[:5]:
        problem(answer, 429, "rate-limited")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit"].startswith('"write";r=0;t=')
        assert answer.headers["ratelimit-policy"] == '"write";q=60;w=360000'
    recorded = Recorded.of(limited)
    changes = recorded.likes(film_of_alice) + recorded.unlikes(film_of_alice)
    assert changes["mallory"] == 60
    assert read(limited.client("bob").put(path))["hasLiked"]


def test_a_user_has_so_many_uploads_under_way(limited: Program) -> None:
    client = limited.client("hoarder")
    begun = [start(client) for _ in range(3)]
    refused = client.post("/uploads", json={**FILM, "sizeBytes": 1})
    assert "3 uploads under way" in problem(refused, 429, "quota-exceeded")["detail"]
    assert '"open-uploads";q=3' in refused.headers["ratelimit-policy"]
    assert refused.headers["retry-after"]
    read(client.delete(f"/uploads/{begun[0]['uploadId']}"))
    start(client)
    start(limited.client("somebody else"))


FILM = {"title": "x", "filename": "x.mp4", "contentType": "video/mp4"}


def test_part_urls_are_given_by_the_hundred_and_never_stored(limited: Program) -> None:
    client = limited.client("uploader")
    one, two, three = ({"Idempotency-Key": f"key {number}"} for number in range(3))
    body = {**FILM, "sizeBytes": 200 * 16 * 1024}
    begun = read(client.post("/uploads", json=body, headers=one))
    assert len(begun["parts"]) == 100
    path = f"/uploads/{begun['uploadId']}/part-urls"
    problem(client.post(path, json={"numbers": list(range(1, 102))}), 422, "invalid")
    more = read(client.post(path, json={"numbers": list(range(101, 201))}, headers=two))
    assert len(more["parts"]) == 100
    video = upload(limited.client("alice"))
    watched = read(client.post(f"/videos/{video}/watch", headers=three))
    again = read(client.post(f"/videos/{video}/watch", headers=three))
    assert again["sessionId"] == watched["sessionId"]
    with psycopg.connect(limited.database_url) as conn:
        rows = conn.execute("SELECT body FROM backlot_events_answers").fetchall()
    kept = [bytes(answer) for (answer,) in rows]
    assert len(kept) >= 3
    for answer in kept:
        assert b"signature" not in answer.lower()
        assert b"http" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "["])
def test_a_foreign_host_is_refused_and_no_url_names_it(limited: Program, host: str) -> None:
    client = limited.client("alice")
    foreign = {"Host": host}
    refused = client.post("/uploads", json={**FILM, "sizeBytes": 1}, headers=foreign)
    assert "BACKLOT_PUBLIC_URL" in problem(refused, 421, "host-unknown")["detail"]
    assert plain.get(f"{limited.url}/videos", headers=foreign).status_code == 421
    # Whoever watches over the program may call it what they like.
    assert plain.get(f"{limited.url}/healthz", headers=foreign).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000"])
def test_loopback_has_many_names(limited: Program, host: str) -> None:
    assert plain.get(f"{limited.url}/videos", headers={"Host": host}).status_code == 200


def test_a_public_url_serves_any_host(make_program: Callable[..., Program]) -> None:
    program = make_program(BACKLOT_PUBLIC_URL="https://films.example").start()
    client = program.client("alice")
    answer = client.post("/uploads", json={**FILM, "sizeBytes": 1}, headers={"Host": "x.example"})
    assert read(answer)["parts"][0]["url"].startswith("https://films.example/objects/")


def test_long_paths_queries_and_headers_are_refused(limited: Program) -> None:
    def get(path: str, **headers: str) -> httpx.Response:
        return plain.get(limited.url + path, headers=headers)

    assert get("/" + "x" * 2_000).status_code == 404
    problem(get("/" + "x" * 2_048), 414, "uri-too-long")
    problem(get("/videos?owner=" + "x" * 8_200), 414, "uri-too-long")
    assert get("/videos", **{"X-Long": "x" * 30_000}).status_code == 200
    problem(get("/videos", **{"X-Long": "x" * 32_768}), 431, "headers-too-large")


@pytest.mark.chaos
def test_ten_thousand_paths_cost_no_memory(server: Program) -> None:
    """Of `server`, which limits nothing: what is remembered is bounded whoever asks."""
    process = server.process
    connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_SECONDS)

    def ask(number: int) -> None:
        connection.request("GET", f"/videos/{uuid4()}/like/{number}" + "x" * 1_900)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 404

    for number in range(500):
        ask(number)
    before = memory(process.pid)
    for number in range(10_000):
        ask(number)
    connection.close()
    # As they were kept before, they took more than 20 MB.
    assert memory(process.pid) - before < 10 * 1024 * 1024


def memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return int(found["Anonymous"]) * 1024


def test_live_streams_of_one_address_and_of_one_user(limited: Program, film_of_alice: str) -> None:
    path = f"/videos/{film_of_alice}/events"
    ann, bob, nobody = limited.client("ann"), limited.client("bob"), limited.client()
    with ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(ann.stream("GET", path)).status_code == 200
        problem(ann.get(path), 429, "too-many-streams")
        assert stack.enter_context(nobody.stream("GET", path)).status_code == 200
        problem(bob.get(path), 429, "too-many-streams")
    # Places are free again once their clients have gone.
    eventually(lambda: bob.head(path).status_code == 200)


@pytest.mark.parametrize("most", ["10000", "300"])
def test_1700_half_open_requests_keep_nobody_out_and_end(
    make_program: Callable[..., Program], most: str
) -> None:
    assert room_for_connections(HALF_OPEN) == HALF_OPEN
    program = make_program(
        RATE_LIMITS="on", HEAD_TIMEOUT_SECONDS="10", MAX_CONNECTIONS=most
    ).start()
    video = upload(program.client("alice"))
    sockets: list[socket.socket] = []
    try:
        for _ in range(HALF_OPEN):
            opened = socket.create_connection(("127.0.0.1", program.port), DEADLINE_SECONDS)
            sockets.append(opened)
            # Those that are pushed out may be so before they have said a word.
            with suppress(ConnectionError):
                opened.sendall(HALF)
        assert read(program.client("bob").put(f"/videos/{video}/like"))["hasLiked"]
        assert plain.get(f"{program.url}/videos").status_code == 200
        for opened in sockets:
            # With an answer or without one, each is closed.
            with suppress(ConnectionError):
                while opened.recv(4096):
                    pass
    finally:
        for opened in sockets:
            opened.close()
    assert read(program.client("bob").get(f"/videos/{video}/like"))["likesCount"] == 1
    assert program.stop() == 0


@pytest.mark.chaos
def test_by_default_people_are_let_be_and_a_flood_is_not(
    make_program: Callable[..., Program],
) -> None:
    most = RateLimitSettings().write.burst
    # As many at once as by default; what comes back meanwhile depends on the machine's speed.
    program = make_program(RATE_LIMITS="", RATE_LIMIT_WRITE=f"0.01/{most}").start()
    video = upload(program.client("alice"), MP4)
    people = [f"person-{number}" for number in range(5)]
    requests = [
        Request(person, method, f"/videos/{video}{rest}", body)
        for person in people
        for method, rest, body in [
            *[("POST", "/like", None)] * 20,
            *[("POST", "/comments", {"content": "Well counted"})] * 20,
            *[("POST", "/watch", None)] * 10,
            *[("GET", "", None)] * 50,
        ]
    ]
    # So few connections that none of them rests for as long as the server keeps one.
    answers = together(program, requests, connections=8)
    assert {answer.status_code for answer in answers} <= {200, 201}
    flood = [Request("mallory", "POST", f"/videos/{video}/like") for _ in range(most + 200)]
    statuses = [answer.status_code for answer in together(program, flood, connections=8)]
    assert Counter(statuses) == {200: most, 429: 200}
