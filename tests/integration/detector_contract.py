"""What every detector of languages must do, whatever it asks; run once per implementation."""

from __future__ import annotations

import asyncio

import pytest

from infra.language.detector import ISO_639_1, Detector

SENTENCES = {
    "This is the best explanation that I have ever seen.": "en",
    "Muchas gracias por este video, me ayudó muchísimo": "es",
    "Das hat mir wirklich geholfen, danke!": "de",
    "C'est exactement ce que je cherchais": "fr",
    "非常感谢你的视频!": "zh",
    "素晴らしい動画をありがとうございます!": "ja",
    "좋은 영상 정말 감사합니다!": "ko",
    "Большое спасибо за видео!": "ru",
    "شكرا جزيلا على هذا الفيديو الجميل": "ar",
    "इस वीडियो के लिए बहुत बहुत धन्यवाद!": "hi",
}
WORDLESS = [
    "",
    "   \n ",
    "😂😂😂",
    "👨\u200d👩\u200d👧 ❤️",
    "https://example.com/watch?v=dQw4w9WgXcQ",
    "www.example.com 😍",
    "youtu.be/dQw4w9WgXcQ",
    "someone@example.com",
    "3:45",
    "2026",
    "10/10 !!!",
    "@anna @ben_99",
    "#fyp #viral",
    "lol",
    "hahahaha",
    "ㅋㅋㅋㅋ",
    "ok",
]
GERMAN = "Das hat mir\nwirklich geholfen,\r\ndanke!\x00"


class DetectorContract:
    """Subclasses give `detector`, and one that is never sure enough."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def detector(self) -> Detector:
        raise NotImplementedError

    @pytest.fixture
    def unsure(self) -> Detector:
        raise NotImplementedError

    async def test_it_says_which_model_it_is(self, detector: Detector) -> None:
        assert "/" in detector.name
        assert detector.name.isprintable()

    @pytest.mark.parametrize("text", SENTENCES)
    async def test_a_sentence_has_a_language_with_a_confidence(
        self, detector: Detector, text: str
    ) -> None:
        found = await detector.detect(text)
        assert found is not None
        assert found.language in ISO_639_1
        assert 0.0 <= found.confidence <= 1.0

    @pytest.mark.parametrize("text", WORDLESS)
    async def test_what_has_no_words_has_no_language(self, detector: Detector, text: str) -> None:
        assert await detector.detect(text) is None

    async def test_it_abstains_when_it_is_not_sure_enough(self, unsure: Detector) -> None:
        assert await unsure.detect("Minunat") is None

    async def test_line_breaks_and_odd_characters_are_no_matter(self, detector: Detector) -> None:
        assert await detector.detect(GERMAN) is not None

    async def test_the_longest_comment_has_a_language(self, detector: Detector) -> None:
        assert await detector.detect("Das hat mir wirklich geholfen. " * 322) is not None

    async def test_texts_at_once_get_each_its_own_answer(self, detector: Detector) -> None:
        alone = [await detector.detect(text) for text in SENTENCES]
        together = await asyncio.gather(*map(detector.detect, list(SENTENCES) * 3))
        assert together == alone * 3


class TrainedContract(DetectorContract):
    """The same, of a model that has learned something."""

    @pytest.mark.parametrize(("text", "language"), SENTENCES.items())
    async def test_it_knows_the_language(
        self, detector: Detector, text: str, language: str
    ) -> None:
        found = await detector.detect(text)
        assert found is not None
        assert found.language == language

    async def test_the_language_of_the_longest_comment(self, detector: Detector) -> None:
        found = await detector.detect("Das hat mir wirklich geholfen. " * 322)
        assert found is not None
        assert found.language == "de"
