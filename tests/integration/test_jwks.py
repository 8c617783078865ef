"""Keys of an identity provider: a real HTTP server that rotates them, breaks and lies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from infra.http.auth import Authenticator, InvalidToken, KeysUnavailable, RemoteKeys

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Provider(HTTPServer):
    """Serves ``answer``, and counts how often it was asked."""

    answer = b""
    status = 200
    asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.server.asked += 1
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


def publish(server: Provider, **keys: Any) -> None:
    listed = []
    for kid, key in keys.items():
        kind = jwt.algorithms.RSAAlgorithm if "rsa" in kid else jwt.algorithms.ECAlgorithm
        listed.append({**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid})
    server.answer = json.dumps({"keys": listed}).encode()


def trusting(server: Provider, clock: Clock | None = None) -> Authenticator:
    url = f"http://127.0.0.1:{server.server_port}/jwks.json"
    return Authenticator(
        RemoteKeys(url, frozenset({"RS256", "ES256"}), clock=clock or time.monotonic)
    )


def token(key: Any, kid: str | None, algorithm: str = "RS256", user: str = "alice") -> str:
    claims = {"sub": user, "exp": int(time.time()) + 60}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def test_published_keys_verify_and_are_fetched_once(provider: Provider) -> None:
    publish(provider, rsa_one=RSA_KEY, ec_two=EC_KEY)
    subject = trusting(provider)
    assert subject.may_block
    assert subject.authenticate(token(RSA_KEY, "rsa_one")).user_id == "alice"
    assert subject.authenticate(token(EC_KEY, "ec_two", "ES256", "bob")).user_id == "bob"
    assert provider.asked == 1


def test_unknown_keys_are_invalid_tokens_and_do_not_flood_the_provider(provider: Provider) -> None:
    subject = trusting(provider)
    for number in range(5):
        with pytest.raises(InvalidToken):
            subject.authenticate(token(RSA_KEY, f"made-up-{number}"))
    assert provider.asked == 1


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
        trusting(provider).authenticate(forged)


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"keys": []}'), (200, b"\xff")],
)
def test_a_broken_provider_is_an_outage_not_a_bad_token(
    provider: Provider, status: int, answer: bytes
) -> None:
    provider.status, provider.answer = status, answer
    with pytest.raises(KeysUnavailable):
        trusting(provider).authenticate(token(RSA_KEY, "rsa_one"))


def test_after_an_outage_keys_are_asked_for_again_after_a_pause(provider: Provider) -> None:
    clock = Clock()
    subject, good = trusting(provider, clock), token(RSA_KEY, "rsa_one")
    provider.status = 503
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            subject.authenticate(good)
    assert provider.asked == 1
    provider.status = 200
    clock.now += 6
    assert subject.authenticate(good).user_id == "alice"
