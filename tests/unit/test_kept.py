"""What a translation has to keep, seen in texts of many scripts."""

# ruff: noqa: RUF001 - texts in many scripts

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.language.words import emoji_of
from tests.real_inputs import RealInput, each
from workers.translator import lost_in, missing

LINKS = [
    "https://youtu.be/dQw4w9WgXcQ?t=42", "http://example.com", "www.example.org/a-b_c",
    "youtu.be/abc", "https://en.wikipedia.org/wiki/Film_(1965)", "https://пример.рф/путь",
    "HTTPS://EXAMPLE.COM/A", "https://a.b/?q=%20x&y=1#z",
]  # fmt: skip
MENTIONS = ["@alice", "@bob_99", "@a.b-c", "@josé", "@мария", "@小明", "@김철수"]
HASHTAGS = ["#music", "#lofi2024", "#película", "#方塊", "#हिन्दी", "#BTS방탄소년단", "#1fan"]
EMOJI = ["😀", "👍🏽", "❤️", "🇩🇪", "👨‍👩‍👧", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🏳️‍🌈", "☕", "‼️"]
TIMES = ["1:23", "01:02:03", "0:05", "59:59"]
WORDS = ["hola", "и", "映画", "qué", "สวัสดี", "and/or", "3", "e.g.", "#1", "1:2", "e-mail", "½"]

KEPT = st.sampled_from([*LINKS, *MENTIONS, *HASHTAGS, *EMOJI, *TIMES])
BREAKS = st.sampled_from([" ", "\n", "\n\n", ", ", " · "])


@st.composite
def comments(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Things to keep and words between them, and what stands between those."""
    things = draw(st.lists(KEPT | st.sampled_from(WORDS), min_size=1, max_size=20))
    return things, [draw(BREAKS) for _ in things]


def joined(things: list[str], breaks: list[str]) -> str:
    return "".join(map("".join, zip(things, breaks, strict=True)))


@given(st.text())
def test_a_text_keeps_itself(text: str) -> None:
    assert missing(text, text) == []


@each("comments")
def test_a_comment_is_kept_with_something_before_it(real: RealInput) -> None:
    assert missing(real.text, f"[en] {real.text}") == []


@pytest.mark.parametrize(
    ("source", "translation"),
    [
        ("https://t.co/x，我很喜欢这个视频谢谢", "https://t.co/x, I like this video a lot, thanks"),
        ("这个视频在example.com/上也有，画质更好", "This video is on example.com too, and sharper"),
        ("@tanakaさん、ありがとうございます！", "Thank you, @tanaka!"),
        ("@小明这个视频真的很好看啊", "@小明 this video is really good"),
        ("#最高この動画は本当に面白かったです", "The best! This video was really fun"),
        ("#最高 この動画は本当に面白かったです", "#最高 This video was really fun"),
        ("https://t.co/xشكرا جزيلا", "https://t.co/x thanks a lot"),
        ("Danke @bob, siehe https://a.b/c", "@bobさん、ありがとう。https://a.b/cを見てください"),
        ("Danke @小明", "谢谢@小明你真好"),
    ],
)
def test_a_translation_may_part_what_a_script_without_spaces_joins(
    source: str, translation: str
) -> None:
    assert missing(source, translation) == []


@given(comments(), st.randoms(use_true_random=False))
def test_a_translation_may_change_words_and_order(
    comment: tuple[list[str], list[str]], chance: random.Random
) -> None:
    things, breaks = comment
    translated = ["word" if thing in WORDS else thing for thing in things]
    chance.shuffle(translated)
    assert missing(joined(things, breaks), joined(translated, breaks)) == []


@given(comments(), KEPT, st.integers(0, 20))
def test_whatever_is_left_out_is_missed(
    comment: tuple[list[str], list[str]], thing: str, place: int
) -> None:
    things, breaks = comment
    place = min(place, len(things))
    whole = joined([*things[:place], thing, *things[place:]], [*breaks, " "])
    lost = missing(whole, joined([*things[:place], "word", *things[place:]], [*breaks, " "]))
    assert len(lost) == 1
    assert thing.replace("\ufe0f", "") in lost[0]


@pytest.mark.parametrize(
    ("source", "translation", "lost"),
    [
        # A sentence goes on behind a link, with or without space.
        ("看 https://a.b/c看看。", "Look at https://a.b/c.", []),
        ("(siehe https://a.b/c), ja!", "(see https://a.b/c), yes!", []),
        ("https://a.b/c?", "https://a.b/d?", ["https://a.b/c", "nothing new, but there was "]),
        ("https://a.b/C", "https://a.b/c", ["https://a.b/C", "nothing new, but there was "]),
        ("https://a.b/@me 1:23", "https://a.b/@me at 1:23", []),
        ("me@example.com", "me@example.com", []),
        ("@bob你好", "Hello @bob", []),
        ("\uff20bob \uff03標籤", "@bob #標籤", []),
        ("看 https://a.b/c看看。", "Look at https://a.b/cd.", ["https://a.b/c", "nothing new"]),
        (
            "@小明这个视频真的很好看啊",
            "@小红 this video is good",
            ["nothing new, but there was @小红"],
        ),
        ("@bob @bobby", "@bobby @bobby", ["@bob"]),
        ("hola", "hi @everyone", ["nothing new, but there was @everyone"]),
        ("hola", "hi, see https://evil.example", ["nothing new, but there was https://evil."]),
        ("👍👍👍", "👍👍", ["👍 exactly 3 times"]),
        ("👍 ok", "👍👍 ok", ["👍"]),
        ("❤️", "❤", []),
        ("👍🏽", "👍", ["👍🏽"]),
        ("🇩🇪🇫🇷", "🇩🇪🇮🇹", ["🇫🇷"]),
        ("すごい‼ ♪ ★", "Great!", []),
        ("al 1:23 y 1:23", "at 1:23", ["1:23 2 times"]),
        ("10.1.2.3:45 y 3:456", "there", []),
        ("uno\ndos\r\ntres", "one\ntwo\nthree", []),
        ("uno\ndos", "one two", ["exactly 1 line breaks, not 0"]),
        ("uno dos", "one\ntwo", ["exactly 0 line breaks, not 1"]),
    ],
)
def test_each_rule_by_example(source: str, translation: str, lost: list[str]) -> None:
    found = missing(source, translation)
    assert len(found) == len(lost)
    assert all(has.startswith(begin) for has, begin in zip(found, lost, strict=True))


def test_what_was_lost_comes_with_its_kind() -> None:
    lost = lost_in("@ann #tag https://a.b/c 😀 1:23\n", "@eve")
    assert [each.kind for each in lost] == [
        "link", "mention", "hashtag", "emoji", "time", "mention", "line break",
    ]  # fmt: skip


@pytest.mark.parametrize("emoji", EMOJI)
def test_an_emoji_is_one_however_many_characters_it_has(emoji: str) -> None:
    assert list(emoji_of(f"a{emoji}b{emoji}")) == 2 * [emoji.replace("\ufe0f", "")]


@pytest.mark.parametrize(
    "unit",
    ["a.", "@", "#", "https://", "www.", "1:", "😀\u200d", "a.b/", "((", "@a.", "\n", "#1", "."],
)
def test_long_texts_of_any_make_are_looked_through_quickly(unit: str) -> None:
    text = (unit * 10_000)[:10_000]
    started = time.process_time()
    missing(text, text)
    assert time.process_time() - started < 1
