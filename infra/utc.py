"""Times as everybody outside is told them: RFC 3339 in UTC, which ends with `Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(time: datetime, timespec: str = "auto") -> str:
    """Return a time as text; `timespec` as `datetime.isoformat` has it."""
    return time.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
