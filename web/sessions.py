"""Who visits: a session in a sealed cookie, the token in it, and what proves that a form is ours.

The cookie is the whole session: every process and replica that has the secret takes it, and a
restart ends none. Scripts of a page can't read it, and no other site's form brings it along.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from secrets import token_urlsafe
from typing import Any

import jwt
from starlette.requests import Request
from starlette.responses import Response

from web.sealed import Box

SESSION, FLASH = "backlot_session", "backlot_flash"
CSRF_FIELD, CSRF_HEADER = "_csrf", "x-csrf-token"
LONGEST_SECONDS = 12 * 3600
# Browsers keep 4,096 bytes of a cookie with its name and attributes.
MOST_COOKIE_BYTES = 3_900


class TokenTooLarge(Exception):
    """A token that does not fit into a cookie."""


@dataclass(frozen=True)
class LoginSession:
    """A visitor with a token; what is said of them comes from the API, which verified it."""

    token: str
    user_id: str
    roles: frozenset[str]
    nonce: str
    until: float

    @property
    def csrf(self) -> str:
        """What each form of this session has in it."""
        return hmac.new(self.nonce.encode(), b"csrf", sha256).hexdigest()


def new_session(token: str, user_id: str, roles: frozenset[str]) -> LoginSession:
    """Return a session that ends with its token, and after twelve hours at the latest."""
    now = time.time()
    ends = float(jwt.decode(token, options={"verify_signature": False}).get("exp", now))
    return LoginSession(token, user_id, roles, token_urlsafe(24), min(ends, now + LONGEST_SECONDS))


def session_of(request: Request, box: Box) -> LoginSession | None:
    """Return the session whose cookie the request brings."""
    found = box.open(SESSION, request.cookies.get(SESSION, ""))
    if found is None:
        return None
    return LoginSession(
        found["token"], found["user"], frozenset(found["roles"]), found["nonce"], found["until"]
    )


def keep(response: Response, session: LoginSession, box: Box, *, secure: bool) -> None:
    """Have the browser keep a session; raise TokenTooLarge."""
    seconds = max(0.0, session.until - time.time())
    told = {
        "token": session.token,
        "user": session.user_id,
        "roles": sorted(session.roles),
        "nonce": session.nonce,
        "until": session.until,
    }
    sealed = box.seal(SESSION, told, seconds)
    if len(sealed) > MOST_COOKIE_BYTES:
        raise TokenTooLarge
    set_cookie(response, SESSION, sealed, int(seconds), secure=secure)


def set_cookie(response: Response, name: str, text: str, seconds: int, *, secure: bool) -> None:
    """Have the browser keep something that no script reads and no other site's form sends."""
    response.set_cookie(
        name, text, max_age=seconds, path="/", secure=secure, httponly=True, samesite="lax"
    )


def same_origin(request: Request) -> bool:
    """Return whether a page of ours sends the request, as far as its browser tells."""
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def proves(session: LoginSession | None, request: Request, form: Mapping[str, Any]) -> bool:
    """Return whether a request that changes something comes from one of our pages (CSRF).

    Its form has the session's code, and the browser, where it says so, that it is of this origin.
    """
    if not same_origin(request):
        return False
    given = str(form.get(CSRF_FIELD) or request.headers.get(CSRF_HEADER, ""))
    return session is not None and hmac.compare_digest(given.encode(), session.csrf.encode())
