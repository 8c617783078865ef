"""Whether a reason that a language model gave can be shown to people: it may repeat a stranger's
words, or what a stranger had it say."""

from __future__ import annotations

import re

from projections.recommendations.excerpt import plain

LONGEST = 120
"""In characters; twelve words of English have about seventy."""

FOREIGN = re.compile(
    r"""
    ://                                # a link
    | \bwww\.
    | \w[.。．｡]\w                     # a host's name, and so a file's, or a sentence run into one
    | \b\w+\s*[\[({]?\s*\bdot\b        # a host's name in words
    | [@<>\[\]{}\\|`*_~^=#\r\n\u2028\u2029]   # an address, markup, a tag, several lines
    | (?:\d[\s().+/-]*){7,}            # a telephone's number
    | \b[cw]\d{1,2}\b                  # an id of the question
    """,  # noqa: RUF001 - the dots of other scripts end hosts' names too
    re.VERBOSE | re.IGNORECASE,
)


def shown(reason: str) -> str | None:
    """The reason as one line; None if it can't be shown.

    None for what is empty or too long, and for what holds a link, an address, a number to call,
    markup, an id of the question, line breaks or unseen characters.
    """
    text = reason.strip()
    if len(text) > LONGEST or FOREIGN.search(text) or not any(map(str.isalpha, text)):
        return None
    line = plain(text)
    return line if line == " ".join(text.split()) else None
