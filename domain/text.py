"""What every text that a person types, and every name, has to satisfy."""

from __future__ import annotations

import re
import unicodedata

from domain.errors import Invalid

# Format characters that are drawn all the same: Unicode's Prepended_Concatenation_Mark.
DRAWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
DRAWN |= frozenset("\U000110bd\U000110cd")
# Blank, though their category says letter, symbol or nothing: fillers of Hangul, the empty pattern
# of Braille, what stands for an object that is not there, controls and blanks among hieroglyphs, a
# note without a head, and what Unicode reserves to be ignored (Default_Ignorable_Code_Point).
BLANK = re.compile(
    "[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\ufffc"
    "\U00013430-\U00013442\U0001d159\U000e0000-\U000e0fff]"
)
# Controls, ends of lines, what turns the direction of text around (https://trojansource.codes),
# and halves of surrogate pairs, which no UTF-8 can hold.
MISLEADING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_text(value: str, field: str, *, max_length: int, required: bool = True) -> None:
    """Raise Invalid for a text that shows nothing (when required), is too long or can't be stored.

    Lengths are in characters (Unicode code points), as they were sent: nothing is normalised.
    """
    if required and not shows(value):
        raise Invalid(f"`{field}` needs some text that can be seen.", field=field)
    if len(value) > max_length:
        raise Invalid(
            f"`{field}` has at most {max_length} characters; this one has {len(value)}.",
            field=field,
        )
    if "\x00" in value:
        raise Invalid(f"`{field}` can't contain the NUL character.", field=field)


def shows(text: str) -> bool:
    """Return whether anything of a text is seen on a screen.

    White space, controls, formats and fillers are not, nor are marks and selectors without a
    character that they belong to.
    """
    return any(map(_is_seen, text))


def is_name(text: str, max_length: int) -> bool:
    """Return whether a text can name somebody: not too long, seen, and without what misleads."""
    return len(text) <= max_length and shows(text) and not MISLEADING.search(text)


def without_misleading(text: str) -> str:
    """Return the text on one line, in its own direction; all that is harmless in it stays."""
    return MISLEADING.sub("", text)


def _is_seen(char: str) -> bool:
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Cs") or category[0] in "MZ":
        return char in DRAWN
    return BLANK.match(char) is None
