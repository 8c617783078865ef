"""Keys of an identity provider: a real HTTP server that rotates them, breaks and lies."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from infra.http.auth import Authenticator, Identity, InvalidToken
from infra.http.keys import (
    KEYS_LIFESPAN_SECONDS,
    MOST_ABSENT,
    PAUSE_SECONDS,
    KeysUnavailable,
    RemoteKeys,
)
from tests.support import eventually

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Provider(HTTPServer):
    """Serves ``answer``, and counts how often it was asked."""

    answer = b""
    status = 200
    asked = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.answering = Event()
        self.answering.set()


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.answering.wait(60)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), Handler)
    publish(server, rsa_one=RSA_KEY)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def publish(server: Provider, **keys: Any) -> None:
    listed = []
    for kid, key in keys.items():
        kind = jwt.algorithms.RSAAlgorithm if "rsa" in kid else jwt.algorithms.ECAlgorithm
        listed.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid})
    server.answer = json.dumps({"keys": listed}).encode()


def trusting(server: Provider, clock: Clock | None = None) -> Authenticator:
    url = f"http://127.0.0.1:{server.server_port}/jwks.json"
    clock = clock or Clock()
    return Authenticator(RemoteKeys(url, {"RS256", "ES256"}, clock=clock, sleep=clock.sleep))


def call(subject: Authenticator, token: str) -> Identity:
    """What a request with the token comes to."""

    async def request() -> Identity:
        await subject.prepare(token)
        return subject.authenticate(token)

    return asyncio.run(request())


def token(key: Any, kid: str | None, algorithm: str = "RS256", user: str = "alice") -> str:
    claims = {"sub": user, "exp": int(time.time()) + 60}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def test_published_keys_verify_and_are_fetched_once(provider: Provider) -> None:
    publish(provider, rsa_one=RSA_KEY, ec_two=EC_KEY)
    subject = trusting(provider)
    assert call(subject, token(RSA_KEY, "rsa_one")).person == "alice"
    assert call(subject, token(EC_KEY, "ec_two", "ES256", "bob")).person == "bob"
    assert provider.asked == 1


def test_a_flood_of_made_up_keys_asks_the_provider_twice_a_pause(provider: Provider) -> None:
    clock = Clock()
    subject = trusting(provider, clock)
    call(subject, token(RSA_KEY, "rsa_one"))
    flood = [token(RSA_KEY, f"made-up-{number}", user="mallory") for number in range(300)]

    async def request(each: str) -> None:
        await subject.prepare(each)
        with pytest.raises(InvalidToken, match="unknown key"):
            subject.authenticate(each)

    async def attack() -> None:
        await asyncio.gather(*map(request, flood))

    asyncio.run(attack())
    # All of them have waited for one answer.
    assert provider.asked == 2
    for each in flood:
        with pytest.raises(InvalidToken):
            call(subject, each)
    assert provider.asked == 2


def test_made_up_keys_one_after_another_leave_the_provider_its_pauses(provider: Provider) -> None:
    clock = Clock()
    subject = trusting(provider, clock)
    asked: list[float] = []
    for number in range(50):
        with pytest.raises(InvalidToken):
            call(subject, token(RSA_KEY, f"made-up-{number}"))
        asked += [clock.now] * (provider.asked - len(asked))
        clock.now += 0.01
    assert all(after - before >= PAUSE_SECONDS for before, after in itertools.pairwise(asked))
    assert len(asked) == 50


def test_valid_tokens_get_through_a_flood_while_the_provider_hangs(provider: Provider) -> None:
    subject = trusting(provider)
    call(subject, token(RSA_KEY, "rsa_one"))
    provider.answering.clear()

    async def attack() -> None:
        waiting = asyncio.create_task(subject.prepare(token(RSA_KEY, "made-up")))
        await asyncio.to_thread(eventually, lambda: provider.asked == 2)
        # A token that was never seen before, and nobody waits for it.
        good = token(RSA_KEY, "rsa_one", user="bob")
        await asyncio.wait_for(subject.prepare(good), 1)
        assert subject.authenticate(good).person == "bob"
        provider.answering.set()
        await waiting

    asyncio.run(attack())


def test_a_new_key_is_found_during_a_flood(provider: Provider) -> None:
    subject = trusting(provider)
    for number in range(3):
        with pytest.raises(InvalidToken):
            call(subject, token(RSA_KEY, f"made-up-{number}"))
    publish(provider, rsa_one=RSA_KEY, ec_two=EC_KEY)
    assert call(subject, token(EC_KEY, "ec_two", "ES256")).person == "alice"


def test_each_made_up_key_is_left_alone_for_longer_and_longer(provider: Provider) -> None:
    clock = Clock()
    subject = trusting(provider, clock)
    asked: list[float] = []
    for _ in range(1_000):
        with pytest.raises(InvalidToken):
            call(subject, token(RSA_KEY, "made-up"))
        if provider.asked > len(asked):
            asked.append(clock.now)
        clock.now += 10
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert pauses[:5] == [30, 60, 120, 240, 480]
    assert set(pauses[5:]) == {600}


def test_made_up_keys_take_bounded_memory(provider: Provider) -> None:
    keys = RemoteKeys(f"http://127.0.0.1:{provider.server_port}/", {"RS256"})
    keys.fetch()
    for number in range(MOST_ABSENT + 100):
        with pytest.raises(jwt.PyJWTError):
            keys.find(token(RSA_KEY, f"made-up-{number}"))
    assert len(keys._absent) == MOST_ABSENT
    with pytest.raises(jwt.PyJWTError):
        keys.find(token(RSA_KEY, "x" * 5_000))
    assert not keys.lacks(token(RSA_KEY, "x" * 5_000))


def test_old_keys_are_fetched_anew_behind_the_callers_back(provider: Provider) -> None:
    clock = Clock()
    subject = trusting(provider, clock)
    call(subject, token(RSA_KEY, "rsa_one"))
    publish(provider, ec_two=EC_KEY)
    clock.now += KEYS_LIFESPAN_SECONDS
    # This one is still answered by what is known.
    call(subject, token(RSA_KEY, "rsa_one", user="bob"))
    eventually(lambda: provider.asked == 2)
    assert call(subject, token(EC_KEY, "ec_two", "ES256")).person == "alice"
    with pytest.raises(InvalidToken, match="unknown key"):
        call(subject, token(RSA_KEY, "rsa_one", user="carol"))


def test_known_keys_go_on_while_the_provider_is_away(provider: Provider) -> None:
    clock = Clock()
    subject = trusting(provider, clock)
    call(subject, token(RSA_KEY, "rsa_one"))
    provider.status = 503
    for day in range(3):
        clock.now += 86_400
        call(subject, token(RSA_KEY, "rsa_one", user=f"viewer {day}"))
    with pytest.raises(KeysUnavailable):
        call(subject, token(RSA_KEY, "rsa_two"))
    call(subject, token(RSA_KEY, "rsa_one", user="last"))


@pytest.mark.parametrize(
    "forged",
    [
        token(EC_KEY, "rsa_one", "ES256"),
        token(RSA_KEY, None),
        token("s" * 32, "rsa_one", "HS256"),
        token(RSA_KEY, "rsa_one", "RS512"),
    ],
    ids=["key of another kind", "no key named", "secret for a public key", "another algorithm"],
)
def test_a_token_that_does_not_fit_its_key_is_invalid(provider: Provider, forged: str) -> None:
    with pytest.raises(InvalidToken):
        call(trusting(provider), forged)


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"keys": []}'), (200, b"\xff")],
)
def test_a_broken_provider_is_an_outage_not_a_bad_token(
    provider: Provider, status: int, answer: bytes
) -> None:
    provider.status, provider.answer = status, answer
    with pytest.raises(KeysUnavailable):
        call(trusting(provider), token(RSA_KEY, "rsa_one"))


def test_after_an_outage_keys_are_asked_for_again_after_a_pause(provider: Provider) -> None:
    clock = Clock()
    subject, good = trusting(provider, clock), token(RSA_KEY, "rsa_one")
    provider.status = 503
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            call(subject, good)
    assert provider.asked == 1
    provider.status = 200
    clock.now += 6
    assert call(subject, good).person == "alice"
