"""Templates: where they are, what they may use, how values are written in them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

HERE = Path(__file__).parent
STATIC = HERE / "static"
NONE = "\u2013"
UNITS = ("bytes", "KB", "MB", "GB", "TB")


@cache
def static(name: str) -> str:
    """Return the URL of one of our files; another content has another URL."""
    return f"/static/{name}?v={sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def number(value: float | None) -> str:
    """Return a number with its thousands apart; a dash for none."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3g}"


def size(value: float | None) -> str:
    """Return a number of bytes in the unit that fits."""
    if value is None:
        return NONE
    unit = 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def seconds(value: float | None) -> str:
    """Return a duration: 850 ms, 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if value is None:
        return NONE
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    for long, short, named in ((86400, 3600, "d h"), (3600, 60, "h min"), (60, 1, "min s")):
        if whole >= long:
            first, second = named.split()
            return f"{whole // long} {first} {whole % long // short} {second}"
    return f"{whole} s"


def clock(value: float | None) -> str:
    """Return a place in a film: 1:02:03 or 2:03."""
    if value is None:
        return NONE
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(value: str | None) -> str:
    """Return how long ago a time of the API was; `time` in macros.html shows both."""
    if not value:
        return NONE
    passed = (datetime.now(UTC) - datetime.fromisoformat(value)).total_seconds()
    return f"in {_rough(-passed)}" if passed < 0 else f"{_rough(passed)} ago"


def _rough(passed: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if passed >= unit:
            count = int(passed // unit)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return "a moment"


def pretty(value: Any) -> str:
    """Return JSON to be read."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def compact(value: Any) -> str:
    """Return JSON for a data attribute, which a script of ours reads."""
    return orjson.dumps(value).decode()


def command_line(command: str, words: Iterable[object] = ()) -> str:
    """Return a command with more words as a shell reads them, whoever chose them."""
    return " ".join([command, *(shlex.quote(str(word)) for word in words)])


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "size": size,
        "seconds": seconds,
        "clock": clock,
        "ago": ago,
        "pretty": pretty,
        "compact": compact,
        "command_line": command_line,
    }
    made.globals["static"] = static
    return made


TEMPLATES = _environment()
