"""Server-sent events, as the WHATWG's HTML standard reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# httpx and str.splitlines() know more ends of lines, such as U+2028, which texts may hold.
END_OF_LINE = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)


@dataclass(frozen=True)
class ServerSentEvent:
    """An event; without data, it only says up to where the client knows everything."""

    kind: str
    data: str
    id: str


def decode_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Return the events of a stream; one that breaks off in the middle is left out."""
    fields: dict[str, list[str]] = {}
    last_id = ""
    for line in decode_lines(chunks):
        name, _, value = line.partition(":")
        if line == "":
            last_id = fields.get("id", [last_id])[-1]
            if fields:
                kind = fields.get("event", ["message"])[-1]
                yield ServerSentEvent(kind, "\n".join(fields.get("data", [])), last_id)
            fields = {}
        elif name:
            fields.setdefault(name, []).append(value.removeprefix(" "))


def decode_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Return the whole lines of a stream, without their ends."""
    rest = b""
    for chunk in chunks:
        *lines, rest = END_OF_LINE.split(rest + chunk)
        for line in lines:
            yield line.decode()
