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


class EventDecoder:
    """Reads a stream chunk by chunk; an event that breaks off in the middle is left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[str]] = {}
        self._last_id = ""

    def decode(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Return the events that end in the next chunk."""
        *lines, self._rest = END_OF_LINE.split(self._rest + chunk)
        for line in lines:
            name, _, value = line.decode().partition(":")
            if line == b"":
                yield from self._event()
            elif name:
                self._fields.setdefault(name, []).append(value.removeprefix(" "))

    def _event(self) -> Iterator[ServerSentEvent]:
        fields, self._fields = self._fields, {}
        self._last_id = fields.get("id", [self._last_id])[-1]
        if fields:
            kind = fields.get("event", ["message"])[-1]
            yield ServerSentEvent(kind, "\n".join(fields.get("data", [])), self._last_id)


def decode_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """Return the events of a stream."""
    decoder = EventDecoder()
    for chunk in chunks:
        yield from decoder.decode(chunk)
