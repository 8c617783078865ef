"""A position token comes back as it went out, and nothing else passes for one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.position import InvalidPosition, decode_position, encode_position


def token_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@given(st.integers(0, 10**18 - 1))
def test_it_comes_back(position: int) -> None:
    token = encode_position(position)
    assert decode_position(token) == position
    assert token.isascii()
    assert set(token).isdisjoint(" \r\n\t=+/,;\"'")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "7",
        "!",
        "=",
        "é",
        "YmFja2xv\n",
        token_of(""),
        token_of("backlot"),
        token_of("backlot:"),
        token_of("backlot:-1"),
        token_of("backlot:+1"),
        token_of("backlot: 1"),
        token_of("backlot:1_0"),
        token_of("backlot:1:2"),
        token_of("backlot:٣"),
        token_of("backlot:" + "9" * 19),
        token_of("another:7"),
        base64.urlsafe_b64encode(b"backlot:\xff").decode(),
    ],
)
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidPosition, match="send back one as received"):
        decode_position(token)


@given(st.text(max_size=40))
def test_no_text_breaks_it(token: str) -> None:
    try:
        position = decode_position(token)
    except InvalidPosition:
        return
    assert decode_position(encode_position(position)) == position
