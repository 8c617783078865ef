"""Login by OpenID Connect: the authorization code flow with PKCE (RFC 6749, 4.1; RFC 7636).

The provider's token is what the APIs get, and they verify it, as they do with every other. Here is
only seen to it that the answer belongs to the question that this browser asked.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from secrets import compare_digest, token_urlsafe
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
import jwt
import structlog
from starlette.responses import RedirectResponse, Response

from web.api import ApiProblem
from web.login import enter, own_page
from web.sessions import set_cookie
from web.visits import Visit, page

log = structlog.get_logger(__name__)

ASKED = "backlot_oidc"
ASKED_SECONDS = 600
TIMEOUT_SECONDS = 10.0
DISCOVERY = "/.well-known/openid-configuration"
CALLBACK = "/login/oidc/callback"


@dataclass(frozen=True)
class OidcProvider:
    """An identity provider, as its operator has set it up for Backlot.

    `token` says which of its tokens the APIs get: the one whose `aud` is JWT_AUDIENCE.
    """

    issuer: str
    client_id: str
    client_secret: str | None = None
    scopes: str = "openid"
    token: Literal["access_token", "id_token"] = "access_token"  # noqa: S105 - a name

    async def found(self, client: httpx.AsyncClient) -> Mapping[str, Any]:
        """Return where the provider does what (OpenID Connect Discovery 1.0)."""
        answer = await client.get(self.issuer.rstrip("/") + DISCOVERY)
        answer.raise_for_status()
        told: Mapping[str, Any] = answer.json()
        if str(told.get("issuer")).rstrip("/") != self.issuer.rstrip("/"):
            raise ValueError(f"it calls itself {told.get('issuer')!r}")
        return told

    async def redeem(
        self, client: httpx.AsyncClient, code: str, verifier: str, callback: str
    ) -> Mapping[str, Any]:
        """Return the tokens that a code stands for."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": callback,
            "client_id": self.client_id,
            "code_verifier": verifier,
        }
        auth = None if self.client_secret is None else (self.client_id, self.client_secret)
        where = (await self.found(client))["token_endpoint"]
        answer = await client.post(where, data=form, auth=auth or httpx.USE_CLIENT_DEFAULT)
        answer.raise_for_status()
        tokens: Mapping[str, Any] = answer.json()
        return tokens


def _away(error: Exception) -> ApiProblem:
    log.warning("oidc_failed", error=str(error), kind=type(error).__name__)
    detail = "The identity provider does not answer as it should; try again soon."
    return ApiProblem(503, {"title": "No login now", "detail": detail})


def _refused(detail: str) -> ApiProblem:
    return ApiProblem(401, {"type": "unauthorized", "title": "No login", "detail": detail})


def _callback(visit: Visit) -> str:
    return visit.parts.public_url + CALLBACK


def _provider(visit: Visit) -> OidcProvider:
    if visit.parts.provider is None:
        raise ApiProblem(404, {"title": "No such page", "detail": "There is no provider set."})
    return visit.parts.provider


async def ask(visit: Visit) -> Response:
    """Send the browser to the provider, with a question that only this browser can end."""
    provider = _provider(visit)
    verifier, state, nonce = token_urlsafe(48), token_urlsafe(24), token_urlsafe(24)
    challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("=")
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            where = (await provider.found(client))["authorization_endpoint"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise _away(error) from error
    query = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": _callback(visit),
        "scope": provider.scopes,
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    response = RedirectResponse(f"{where}{'&' if '?' in where else '?'}{urlencode(query)}", 303)
    asked = {"verifier": verifier, "state": state, "nonce": nonce}
    asked["next"] = own_page(visit.query("next"))
    sealed = visit.parts.box.seal(ASKED, asked, ASKED_SECONDS)
    set_cookie(response, ASKED, sealed, ASKED_SECONDS, secure=visit.parts.secure)
    return response


async def take(visit: Visit) -> Response:
    """Take the provider's answer, where it belongs to what this browser asked."""
    provider = _provider(visit)
    asked = visit.parts.box.open(ASKED, visit.request.cookies.get(ASKED, ""))
    state, code = visit.query("state") or "", visit.query("code")
    if asked is None or not compare_digest(asked["state"].encode(), state.encode()):
        raise _refused("The answer belongs to no login of this browser; begin again.")
    if code is None:
        said = visit.query("error_description") or visit.query("error") or "nothing"
        raise _refused(f"The identity provider says: {said[:200]}")
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
            tokens = await provider.redeem(client, code, asked["verifier"], _callback(visit))
        said_nonce = _claims(tokens["id_token"]).get("nonce") if "id_token" in tokens else None
        token = tokens[provider.token]
    except (httpx.HTTPError, ValueError, KeyError, jwt.PyJWTError) as error:
        raise _away(error) from error
    if said_nonce != asked["nonce"]:
        raise _refused("The provider's answer is to another question; begin again.")
    response = await enter(visit, token, asked["next"])
    response.delete_cookie(ASKED, path="/")
    return response


def _claims(token: str) -> Mapping[str, Any]:
    """Return what a token says; it comes from the provider itself, by TLS (OIDC Core, 3.1.3.7)."""
    claims: Mapping[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


ROUTES = [page("/login/oidc", ask), page(CALLBACK, take)]
