"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple


class Told(NamedTuple):
    """An event of a stream."""

    kind: str
    id: str
    data: dict[str, Any]


def events(lines: Iterator[str]) -> Iterator[Told]:
    """The events of a stream, in which lines follow each other that are no comments."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif line == "":
            if "data" in fields:
                yield Told(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}
