"""Whisper as a detector: the contract, and what is its own; needs the extra, no weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import whisper
from infra.language.detector import Detector, make_detector
from infra.settings import load_settings
from infra.whisper import SilentDecoder, WhisperDetector, WhisperMissing, WhisperUnusable
from tests.integration.detector_contract import DetectorContract
from tests.integration.whisper_models import ENGLISH, needs_whisper, save_untrained

# Whisper leaves the file of its vocabulary to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*FileIO.*tiktoken:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs_whisper()
    yield save_untrained(tmp_path_factory.mktemp("whisper") / "untrained.pt")
    whisper.load.cache_clear()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestWhisperDetector(DetectorContract):
    """Without training its answers mean nothing; that there is one, and always the same, does."""

    @pytest.fixture
    def detector(self, model: str) -> Iterator[Detector]:
        detector = WhisperDetector(model, 0.0)
        yield detector
        detector.close()

    @pytest.fixture
    def unsure(self, model: str) -> Iterator[Detector]:
        detector = WhisperDetector(model, 1.0)
        yield detector
        detector.close()


def test_a_model_is_named_without_its_folder(model: str) -> None:
    settings = load_settings({"LANGUAGE_DETECTOR": "whisper", "WHISPER_MODEL": model})
    assert make_detector(settings.translation, None).name == "openai-whisper/untrained.pt"


def test_a_text_is_scored_as_the_decoder_predicts_it(model: str) -> None:
    import torch

    loaded = whisper.load(model)
    decoder = SilentDecoder(loaded)
    shares = decoder.shares("Das hat mir geholfen")
    tokenizer: Any = decoder._tokenizer
    tokens = tokenizer.encode(" Das hat mir geholfen")
    scores = []
    with torch.inference_mode():
        for language in tokenizer.all_language_tokens:
            start = [tokenizer.sot, language, tokenizer.transcribe, tokenizer.no_timestamps]
            logits = loaded.logits(torch.tensor([start + tokens]), decoder._silence)[0]
            predicted = logits.log_softmax(dim=1)[3:-1]
            scores.append(sum(float(predicted[at, token]) for at, token in enumerate(tokens)))
    expected = torch.tensor(scores).softmax(dim=0).tolist()
    assert list(shares.values()) == pytest.approx(expected, rel=1e-3)
    german = tokenizer.all_language_tokens.index(tokenizer.to_language_token("de"))
    assert list(shares)[german] == "de"


@pytest.mark.anyio
async def test_a_model_for_english_only_is_refused(tmp_path: Path) -> None:
    needs_whisper()
    detector = WhisperDetector(save_untrained(tmp_path / "small.en.pt", ENGLISH), 0.5)
    with pytest.raises(WhisperUnusable, match="English only"):
        await detector.detect("Das hat mir geholfen")
    detector.close()


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_a_file_that_is_no_model_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    needs_whisper()
    (tmp_path / "odd.pt").write_bytes(content)
    with pytest.raises(WhisperUnusable, match=r"WHISPER_MODEL=.*odd\.pt can't be loaded"):
        whisper.load(str(tmp_path / "odd.pt"))


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    needs_whisper()
    with pytest.raises(WhisperUnusable, match="available models"):
        whisper.load("enormous")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper, "is_installed", lambda: False)
    with pytest.raises(WhisperMissing, match=r"LANGUAGE_DETECTOR=whisper .*backlot\[whisper\]"):
        make_detector(load_settings({"LANGUAGE_DETECTOR": "whisper"}).translation, None)
