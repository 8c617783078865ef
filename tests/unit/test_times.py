"""Every time that anybody outside is told is in UTC, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from commands.upload_shapes import PartUrl
from infra.http.shapes import Time, Wire, rfc3339

NOON = datetime(2026, 7, 1, 12, 0, 0, 250_000, tzinfo=UTC)
ELSEWHERE = [
    NOON.astimezone(ZoneInfo("Europe/Berlin")),
    NOON.astimezone(ZoneInfo("Asia/Kathmandu")),
    NOON.astimezone(timezone(timedelta(seconds=-1))),
    NOON.replace(tzinfo=None),
]


def shapes(of: type[Wire] = Wire) -> Iterator[type[Wire]]:
    for shape in of.__subclasses__():
        yield shape
        yield from shapes(shape)


def holds_a_bare_time(annotation: Any, metadata: tuple[Any, ...] = ()) -> bool:
    """Whether a time may stand there in any zone."""
    if annotation is datetime:
        return get_args(Time)[1] not in metadata
    if hasattr(annotation, "__metadata__"):
        return holds_a_bare_time(annotation.__origin__, annotation.__metadata__)
    return any(holds_a_bare_time(each, metadata) for each in get_args(annotation))


def test_every_shape_on_the_wire_refuses_other_zones() -> None:
    import_module("backlot.features")
    fields = [
        (f"{shape.__name__}.{name}", field)
        for shape in shapes()
        for name, field in shape.model_fields.items()
    ]
    assert len(fields) > 200
    bare = [
        name for name, field in fields if holds_a_bare_time(field.annotation, (*field.metadata,))
    ]
    assert bare == []


@pytest.mark.parametrize("time", [NOON, NOON.astimezone(ZoneInfo("UTC"))])
def test_utc_is_told_with_a_z(time: datetime) -> None:
    told = PartUrl(number=1, url="x", expires_at=time).to_json()
    assert b'"expiresAt":"2026-07-01T12:00:00.250000Z"' in told


@pytest.mark.parametrize("time", ELSEWHERE)
def test_any_other_zone_is_refused(time: datetime) -> None:
    with pytest.raises(ValidationError, match="must be in UTC"):
        PartUrl(number=1, url="x", expires_at=time)


@pytest.mark.parametrize("time", [NOON, *ELSEWHERE[:3]])
def test_a_printed_time_is_in_utc(time: datetime) -> None:
    assert rfc3339(time) == "2026-07-01T12:00:00.250000Z"
    assert rfc3339(time, "seconds") == "2026-07-01T12:00:00Z"
