"""The two APIs as the pages call them: over HTTP, as the visitor, from the visitor's address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from starlette.requests import Request

Connect = Callable[[Request], httpx.AsyncClient]
"""Opens the APIs for whoever sends this request: from the same address, to the same host."""

TIMEOUT_SECONDS = 30.0


class ApiProblem(Exception):
    """What an API answered instead of what was asked for; `type` is the problem's slug."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.type = str(body.get("type", "internal"))
        self.title = str(body.get("title", "Something went wrong"))
        self.detail = str(body.get("detail", ""))
        self.request_id = str(body.get("requestId", ""))
        self.body = body
        super().__init__(f"{status} {self.type}: {self.detail}")


class Members(dict[str, Any]):
    """An object of an API: a member that it leaves out is None, in templates too."""

    def __missing__(self, name: str) -> None:
        return None


def known(value: Any) -> Any:
    """Return JSON of an API with all its objects as `Members`."""
    if isinstance(value, dict):
        return Members({name: known(each) for name, each in value.items()})
    return [known(each) for each in value] if isinstance(value, list) else value


def path(template: str, *parts: object) -> str:
    """Return a path of the API: each `{}` of the template holds a part, escaped."""
    return template.format(*(quote(str(part), safe="") for part in parts))


class Api:
    """The APIs with one visitor's token; None calls as somebody without one.

    Every call returns the JSON that was answered (None for no content), and raises ApiProblem.
    Parameters that are None are left out.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def get(self, where: str, /, **params: Any) -> Any:
        return (await self.answer("GET", where, params=params)).json()

    async def text(self, where: str, accept: str, /, **params: Any) -> httpx.Response:
        """Return the answer in another media type than JSON, such as CSV."""
        return await self.answer("GET", where, params=params, headers={"Accept": accept})

    async def post(self, where: str, body: Any = None, /, **params: Any) -> Any:
        return self._json(await self.answer("POST", where, body, params=params))

    async def put(self, where: str, body: Any = None, /, **params: Any) -> Any:
        return self._json(await self.answer("PUT", where, body, params=params))

    async def patch(self, where: str, body: Any, /, **params: Any) -> Any:
        return self._json(await self.answer("PATCH", where, body, params=params))

    async def delete(self, where: str, /, **params: Any) -> Any:
        return self._json(await self.answer("DELETE", where, params=params))

    @staticmethod
    def _json(answer: httpx.Response) -> Any:
        return answer.json() if answer.content else None

    async def answer(
        self,
        method: str,
        where: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request; raise ApiProblem for what is answered with 400 or more."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = await self._client.request(
                method,
                where,
                params=given,
                json=body,
                headers={**self._headers, **(headers or {})},
            )
        except httpx.TransportError as error:
            detail = "The API does not answer; try again soon."
            told = {"type": "unavailable", "title": "Unavailable", "detail": detail}
            raise ApiProblem(503, told) from error
        if answer.status_code >= 400:
            raise ApiProblem(answer.status_code, _told(answer))
        return answer


def _told(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"detail": answer.text[:200]}
