"""OpenAI's Whisper, where the extra `backlot[whisper]` is installed.

As a process of its own, `python -m infra.whisper MODEL FILE` tells what is said in a file.

It is a detector of written languages too, as the original plan asks. Whisper hears; it was never
meant to read. But its decoder is a language model that is told the language first, so a text can be
scored under each language's token, with silence for the audio. Nobody has published how well that
works; `make bench` measures it where Whisper is installed.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import OperatorError
from infra.language.detector import Detection, folded
from infra.language.words import words

if TYPE_CHECKING:
    from torch import Tensor
    from whisper import Whisper

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768.0
MAX_TOKENS = 64
"""Of the text; what comes after them is not read. The decoder takes 448."""
LANGUAGES_AT_ONCE = 8
"""Their logits are the largest thing in memory: 110 MB for 8 with 64 tokens."""
# Also what a file that is no model of Whisper's ends in.
_LOADING_FAILS = (OSError, RuntimeError, LookupError, TypeError, pickle.UnpicklingError, EOFError)


class WhisperMissing(OperatorError):
    """A setting asks for Whisper, and it is not installed."""


class WhisperUnusable(OperatorError):
    """WHISPER_MODEL can't be loaded, or can't do what it is to be used for."""


def is_installed() -> bool:
    """Return whether the extra is here, by its name: another package is imported as `whisper`."""
    try:
        metadata.version("openai-whisper")
    except metadata.PackageNotFoundError:
        return False
    return True


def require(setting: str) -> None:
    """Raise WhisperMissing, which names the setting that asks for it."""
    if not is_installed():
        raise WhisperMissing(
            f"{setting} needs Whisper: install the extra with `pip install 'backlot[whisper]'`, "
            "or change the setting."
        )


def name_of(model: str) -> str:
    """Return what events call a model: its name, or that of its file without the folder."""
    return f"openai-whisper/{Path(model).name}"


@cache
def load(model: str) -> Whisper:
    """Return the model with this name or in this file; takes seconds, and about its size in memory.

    A name is looked for in `~/.cache/whisper`, and downloaded to there when it is missing.
    Raise WhisperUnusable.
    """
    import whisper

    try:
        return whisper.load_model(model)
    except _LOADING_FAILS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WhisperUnusable(f"WHISPER_MODEL={model} can't be loaded: {reason}") from error


def listen(model: str, samples: Path) -> dict[str, Any]:
    """Return what is said in a file of 16-bit samples at 16 kHz: `language`, and `segments`."""
    import torch

    sound = torch.frombuffer(bytearray(samples.read_bytes()), dtype=torch.int16) / FULL_SCALE
    recogniser = load(model)
    told = recogniser.transcribe(
        sound,
        fp16=recogniser.device.type == "cuda",
        # The same answer each time. Whisper's default tries again by chance, up to five times.
        temperature=0.0,
        # Else one wrong sentence may be repeated to the end.
        condition_on_previous_text=False,
    )
    segments = [{key: part[key] for key in ("start", "end", "text")} for part in told["segments"]]
    return {"language": told["language"], "segments": segments}


class WhisperDetector:
    """One text at a time, in a thread of its own; the first one loads the model."""

    def __init__(self, model: str, min_confidence: float) -> None:
        """Below `min_confidence` (0 to 1) it abstains. Raise WhisperMissing without the extra."""
        require("LANGUAGE_DETECTOR=whisper")
        self._model = model
        self._min_confidence = min_confidence
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="whisper")
        self.name = name_of(model)

    async def detect(self, text: str) -> Detection | None:
        """As the port has it. Raise WhisperUnusable when the model can't be loaded."""
        spoken = words(text)
        if not spoken:
            return None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._best, spoken)

    def close(self) -> None:
        """End the thread, once it has answered."""
        self._thread.shutdown()

    def _best(self, spoken: str) -> Detection | None:
        shares: dict[str, float] = defaultdict(float)
        for code, share in self._decoder.shares(spoken).items():
            shares[folded(code)] += share
        best = max(shares, key=shares.__getitem__)
        return Detection.of(best, shares[best], self._min_confidence)

    @cached_property
    def _decoder(self) -> SilentDecoder:
        return SilentDecoder(load(self._model))


class SilentDecoder:
    """Whisper's decoder, listening to nothing."""

    def __init__(self, model: Whisper) -> None:
        import torch
        from whisper.audio import N_SAMPLES, log_mel_spectrogram
        from whisper.tokenizer import get_tokenizer

        if not model.is_multilingual:
            raise WhisperUnusable("WHISPER_MODEL is one for English only; name another.")
        self._model = model
        self._tokenizer = get_tokenizer(
            multilingual=True, num_languages=model.num_languages, task="transcribe"
        )
        mel = log_mel_spectrogram(torch.zeros(N_SAMPLES), model.dims.n_mels).to(model.device)
        with torch.inference_mode():
            self._silence: Tensor = model.embed_audio(mel.unsqueeze(0))
            self._heard = self._attended()

    def _attended(self) -> dict[object, Tensor]:
        """Return what each layer attends to in the silence, for Whisper's cache.

        Whisper takes the length of the cache's first entry for how much of the text is in it.
        """
        heard: dict[object, Tensor] = {None: self._silence[:, :0]}
        for block in self._model.decoder.blocks:
            attention = block.cross_attn
            heard[attention.key] = attention.key(self._silence)
            heard[attention.value] = attention.value(self._silence)
        return heard

    def shares(self, text: str) -> dict[str, float]:
        """Return how probable each of Whisper's languages is, given the text; they sum up to 1.

        By Bayes' rule with all languages equally probable beforehand: the softmax over the
        log-probabilities of the whole text. The mean per token would give the same order, but
        shares that are nearly equal.
        """
        import torch

        tokens = self._tokenizer.encode(" " + text)[:MAX_TOKENS]
        with torch.inference_mode():
            languages = torch.tensor(self._tokenizer.all_language_tokens).split(LANGUAGES_AT_ONCE)
            scores = torch.cat([self._scores(some, tokens) for some in languages])
            shares: list[float] = scores.softmax(dim=0).tolist()
        return dict(zip(self._tokenizer.all_language_codes, shares, strict=True))

    def _scores(self, languages: Tensor, tokens: list[int]) -> Tensor:
        """Return the log-probability of the tokens after each of these language tokens."""
        import torch

        tokenizer, device = self._tokenizer, self._model.device
        rows = [
            [tokenizer.sot, language, tokenizer.transcribe, tokenizer.no_timestamps, *tokens]
            for language in languages.tolist()
        ]
        said = torch.tensor(rows, device=device)
        heard = {part: seen.expand(len(rows), -1, -1) for part, seen in self._heard.items()}
        silence = self._silence.expand(len(rows), -1, -1)
        logits = self._model.decoder(said, silence, kv_cache=heard)
        # What stands at one place predicts the next; the text begins after four tokens.
        predicted, actual = logits[:, 3:-1], said[:, 4:]
        chosen = predicted.gather(2, actual.unsqueeze(2)).squeeze(2)
        return (chosen - predicted.logsumexp(dim=2)).sum(dim=1).double().cpu()


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(listen(sys.argv[1], Path(sys.argv[2]))))
    except OperatorError as error:
        sys.exit(str(error))
