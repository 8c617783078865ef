"""Login by OpenID Connect, against a provider that speaks it over HTTP and checks what it gets."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import jwt
import pytest
from starlette.testclient import TestClient

from web.app import make_web_app
from web.oidc import OidcProvider
from web.sealed import Box
from web.sessions import SESSION
from web.visits import WebParts

OURS = "https://backlot.test"
CALLBACK = f"{OURS}/login/oidc/callback"
CODE = "the code"
SECRET = "signs the tokens of these tests only"


class IdentityProvider(ThreadingHTTPServer):
    """Gives tokens for one code to who asked for it; `nonce` and `lies` are the test's."""

    challenge = ""
    nonce = ""
    issuer = ""
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def tokens(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        digest = sha256(form["code_verifier"].encode()).digest()
        asked = urlsafe_b64encode(digest).decode().rstrip("=")
        basic = b64encode(b"backlot:its secret").decode()
        known = (form["code"], form["redirect_uri"], form["client_id"], form["grant_type"])
        if known != (CODE, CALLBACK, "backlot", "authorization_code"):
            return None
        if asked != self.challenge or authorization != f"Basic {basic}":
            return None
        claims = {"sub": "ann", "roles": ["auditor"], "exp": 4_000_000_000}
        return {
            "access_token": jwt.encode(claims, SECRET),
            "id_token": jwt.encode({"nonce": self.nonce, "sub": "ann"}, SECRET),
            "token_type": "Bearer",
        }


class Answers(BaseHTTPRequestHandler):
    server: IdentityProvider

    def do_GET(self) -> None:
        assert self.path == "/.well-known/openid-configuration"
        url = self.server.url
        self._answer(
            self.server.status,
            {
                "issuer": self.server.issuer or url,
                "authorization_endpoint": f"{url}/authorize?tenant=1",
                "token_endpoint": f"{url}/token",
            },
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        tokens = self.server.tokens(dict(parse_qsl(body)), self.headers["authorization"])
        self._answer(200 if tokens else 400, tokens or {"error": "invalid_grant"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def browser(provider: IdentityProvider) -> TestClient:
    """A browser at the pages, whose APIs know the provider's tokens."""

    def answer(request: httpx.Request) -> httpx.Response:
        bearer = request.headers["authorization"].removeprefix("Bearer ")
        claims = jwt.decode(bearer, options={"verify_signature": False})
        return httpx.Response(200, json={"userId": claims["sub"], "roles": claims["roles"]})

    parts = WebParts(
        connect=lambda _: httpx.AsyncClient(
            transport=httpx.MockTransport(answer), base_url="http://api"
        ),
        box=Box("a secret"),
        secure=True,
        provider=OidcProvider(provider.url, "backlot", "its secret"),
        public_url=OURS,
    )
    return TestClient(make_web_app(parts), base_url=OURS, follow_redirects=False)


def asked(client: TestClient, provider: IdentityProvider) -> dict[str, str]:
    """What the browser is sent to the provider with."""
    answer = client.get("/login/oidc?next=/console/log")
    assert answer.status_code == 303
    where = urlsplit(answer.headers["location"])
    assert f"{where.scheme}://{where.netloc}{where.path}" == f"{provider.url}/authorize"
    query = {name: value for name, (value,) in parse_qs(where.query).items()}
    provider.challenge, provider.nonce = query["code_challenge"], query["nonce"]
    return query


def test_who_comes_back_with_the_code_is_logged_in(provider: IdentityProvider) -> None:
    client = browser(provider)
    query = asked(client, provider)
    told = {name: query[name] for name in ("tenant", "response_type", "client_id", "scope")}
    assert told == {
        "tenant": "1",
        "response_type": "code",
        "client_id": "backlot",
        "scope": "openid",
    }
    assert query["code_challenge_method"] == "S256"
    assert query["redirect_uri"] == CALLBACK
    answer = client.get(f"{CALLBACK}?code={CODE}&state={query['state']}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/log")
    page = client.get("/login").text
    assert ">ann<" in page
    # The same answer is good for nothing more.
    again = client.get(f"{CALLBACK}?code={CODE}&state={query['state']}")
    assert again.status_code == 303
    assert again.headers["location"].startswith("/login")


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(
    provider: IdentityProvider,
) -> None:
    client = browser(provider)
    query = asked(client, provider)
    for wrong in (
        f"code={CODE}&state=another",
        f"code={CODE}",
        f"state={query['state']}&error=access_denied",
    ):
        answer = client.get(f"{CALLBACK}?{wrong}")
        assert answer.status_code == 401
        assert SESSION not in answer.headers.get("set-cookie", "")
    other = browser(provider)
    assert other.get(f"{CALLBACK}?code={CODE}&state={query['state']}").status_code == 401


def test_an_answer_to_another_question_is_refused(provider: IdentityProvider) -> None:
    client = browser(provider)
    query = asked(client, provider)
    provider.nonce = "another"
    assert client.get(f"{CALLBACK}?code={CODE}&state={query['state']}").status_code == 401


@pytest.mark.parametrize("fault", ["code", "issuer", "status"])
def test_a_provider_that_fails_is_told_of(provider: IdentityProvider, fault: str) -> None:
    client = browser(provider)
    query = asked(client, provider)
    if fault == "issuer":
        provider.issuer = "https://another.test"
    if fault == "status":
        provider.status = 500
    code = "wrong" if fault == "code" else CODE
    answer = client.get(f"{CALLBACK}?code={code}&state={query['state']}")
    assert answer.status_code == 503
    assert "identity provider" in answer.text
