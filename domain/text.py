"""What every text that a person types has to satisfy."""

from __future__ import annotations

from domain.errors import Invalid


def check_text(value: str, field: str, *, max_length: int, required: bool = True) -> None:
    """Refuse an empty (when required), too long or unstorable text; lengths are in characters."""
    if required and not value.strip():
        raise Invalid(f"`{field}` needs some text.", field=field)
    if len(value) > max_length:
        raise Invalid(
            f"`{field}` has at most {max_length} characters; this one has {len(value)}.",
            field=field,
        )
    if "\x00" in value:
        raise Invalid(f"`{field}` can't contain the NUL character.", field=field)
