"""Refusals, as exceptions."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import httpx

from backlot_client.generated.models import ProblemDetails
from backlot_client.generated.types import Response

T = TypeVar("T")


class Problem(Exception):
    """The server, or something in front of it, refused a request.

    `type` is that of Backlot's problems, or `unknown` where the answer is none of them. `members`
    has all that the answer says.
    """

    def __init__(self, status: int, type_: str, detail: str, members: dict[str, Any]) -> None:
        super().__init__(f"{status} {type_}: {detail}")
        self.status = status
        self.type = type_
        self.detail = detail
        self.members = members

    @property
    def request_id(self) -> str | None:
        """The id under which the server's log tells of the request."""
        found = self.members.get("requestId")
        return found if isinstance(found, str) else None

    @classmethod
    def of(cls, response: httpx.Response) -> Problem:
        """Return the problem in an answer whose body was read."""
        members = _members(response)
        type_, detail = members.get("type", "unknown"), members.get("detail")
        return cls(response.status_code, str(type_), str(detail or response.text[:500]), members)


def _members(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def answered(response: Response[T | ProblemDetails]) -> T:
    """Return the answer of a generated call; problems were raised before."""
    parsed = response.parsed
    if parsed is None or isinstance(parsed, ProblemDetails):
        raise Problem(int(response.status_code), "unknown", "an answer of another API", {})
    return parsed
