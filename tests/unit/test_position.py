"""A position token comes back as it went out, and nothing else passes for one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.http.shapes import InvalidPosition, Position, decode_position, encode_position


def token_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


NUMBERS = st.integers(0, 10**18 - 1)


@given(NUMBERS, NUMBERS)
def test_it_comes_back(events: int, telemetry: int) -> None:
    token = encode_position(events, telemetry)
    assert decode_position(token) == Position(events, telemetry)
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
        token_of("backlot:1:"),
        token_of("backlot:1:-2"),
        token_of("backlot::2"),
        token_of("backlot:1:2:3"),
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
    assert decode_position(encode_position(*position)) == position


def test_a_token_of_an_older_release_is_read() -> None:
    assert decode_position(token_of("backlot:7")) == Position(7, 0)


@given(st.tuples(NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS))
def test_one_covers_another_only_in_both_orders(one: tuple[int, int], two: tuple[int, int]) -> None:
    joint = Position(max(one[0], two[0]), max(one[1], two[1]))
    assert joint.covers(Position(*one))
    assert joint.covers(Position(*two))
    assert Position(*one).covers(Position(*two)) is (joint == Position(*one))
