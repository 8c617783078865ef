"""How much of an event's content a tool may show: all of it, only its structure, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

MAX_ITEMS = 100
MAX_DEPTH = 32


class PayloadMode(StrEnum):
    """What is shown of a payload, and of who acted.

    `masked` keeps keys, nesting, and the lengths of texts and lists; no value of any field.
    """

    FULL = "full"
    MASKED = "masked"
    NONE = "none"


def present(payload: Mapping[str, object], mode: PayloadMode) -> dict[str, object] | None:
    """Return a decoded JSON object as the mode admits it; None where nothing of it may be shown.

    Masked, a list ends after 100 items with a note of how many follow, and what is nested more
    than 32 levels deep is left out.
    """
    if mode is PayloadMode.FULL:
        return dict(payload)
    if mode is PayloadMode.MASKED:
        return {key: _mask(value, MAX_DEPTH) for key, value in payload.items()}
    return None


def mask_actor(actor: str | None, mode: PayloadMode) -> str | None:
    """Return who acted, as the mode admits it: a user id tells something about a person too."""
    if mode is PayloadMode.FULL or actor is None:
        return actor
    return _mask_text(actor) if mode is PayloadMode.MASKED else None


def _mask(value: object, depth: int) -> object:
    match value:
        case None:
            return None
        case bool():
            return "<boolean>"
        case int() | float():
            return "<number>"
        case str():
            return _mask_text(value)
        case dict() | list() if depth == 0:
            return "<nested>"
        case dict():
            return {str(key): _mask(item, depth - 1) for key, item in value.items()}
        case list():
            shown = [_mask(item, depth - 1) for item in value[:MAX_ITEMS]]
            more = len(value) - len(shown)
            return [*shown, f"<{more} more>"] if more else shown
    # Something that is not JSON: its kind, and certainly not its value.
    return f"<{type(value).__name__}>"


def _mask_text(text: str) -> str:
    return f"<string {len(text)}>"
