"""The language of short comments: each detector that can be had here, on one labelled set.

With LANGUAGE_TEXTS, a folder with a text per line in `<kind>/<ISO 639-1>.txt`, on those as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench, say
from benchmarks.detection import BARE, LLM, TEXT, WHISPER, Guess, Labelled, Told, labelled, lines
from benchmarks.processes import ROOT, ProcessFailed, command
from benchmarks.results import Comparison, Side
from infra import whisper
from infra.language.words import words
from infra.settings import load_settings

NONE = "und"
"""The label of comments that must be abstained from."""
PLAIN = ("plain", "wordless")
"""The kinds that accuracy is told of; no detector knows romanised Hindi."""
_LEFT_OUT = "af bs cy eo ga id kk la lg mi mk mn ms sn so st sw tn ts xh zu"
LEFT_OUT = frozenset(_LEFT_OUT.split())
"""Languages of lingua's files that ELD or fastText does not know, or tells from no other one."""
TARGET = "en"
NAMES = {
    TEXT: "text detector",
    BARE: "fastText alone: unprepared, no least confidence",
    LLM: "language model",
    WHISPER: "Whisper's decoder",
}


@dataclass(frozen=True, slots=True)
class Score:
    """Percent: the first three of the comments in a language, `answered` of those without one."""

    right: float
    wrong: float
    abstained: float
    answered: float
    misled: float
    """Of all comments: another language than theirs, or any where there is none."""


def score(truth: Sequence[str], found: Sequence[str | None]) -> Score:
    """How often a detector was right; both in the same order."""
    pairs = list(zip(truth, found, strict=True))
    written = [(label, answer) for label, answer in pairs if label != NONE]
    wordless = [answer for label, answer in pairs if label == NONE]
    right = sum(label == answer for label, answer in written)
    abstained = sum(answer is None for _, answer in written)
    wrong = len(written) - right - abstained
    answered = sum(answer is not None for answer in wordless)
    return Score(
        right=100 * right / max(len(written), 1),
        wrong=100 * wrong / max(len(written), 1),
        abstained=100 * abstained / max(len(written), 1),
        answered=100 * answered / max(len(wordless), 1),
        misled=100 * (wrong + answered) / max(len(pairs), 1),
    )


@dataclass(frozen=True, slots=True)
class Reach:
    """Percent of comments of all kinds, as a detector decides whose translation is asked for."""

    missed: float
    """Of those in other languages: taken for the target's, and so never translated."""
    asked: float
    """Of those in the target language: a language model is asked about them, for nothing."""


def reach(comments: Sequence[Labelled], guesses: Sequence[Guess], least: float) -> Reach:
    """Who is taken for English with at least this confidence; both in the same order."""
    asked, missed = [], []
    for comment, guess in zip(comments, guesses, strict=True):
        is_target = guess is not None and guess[0] == TARGET and guess[1] >= least
        if comment.language == TARGET:
            asked.append(not is_target and bool(words(comment.text)))
        elif comment.language != NONE:
            missed.append(is_target)
    return Reach(missed=_percent(missed), asked=_percent(asked))


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / max(len(flags), 1)


def run(bench: Bench) -> list[Comparison]:
    """Percent of wrong and of right answers and µs, against a well-known model as it comes.

    Another detector is measured where it can be had: the language model and Whisper when the
    environment says which (OPENAI_API_KEY or OPENAI_BASE_URL, WHISPER_MODEL).
    """
    every = bench.size(1, 20)
    ours, bare = (_told(kind, bench.size(5, 1), every) for kind in (TEXT, BARE))
    comparisons = [
        Comparison(
            "languages",
            "% misled",
            _misled(TEXT, ours, every),
            _misled(BARE, bare, every),
            at_most=0.5,
        ),
        *_compare(TEXT, ours, BARE, bare, every),
    ]
    for kind in _others():
        comparisons += _compare(kind, _told(kind, 1, every), TEXT, ours, every)
    if folder := os.environ.get("LANGUAGE_TEXTS"):
        comparisons += _compare_lines(Path(folder), every)
    return comparisons


def _compare_lines(folder: Path, every: int) -> Iterator[Comparison]:
    """Compare both kind by kind. Accuracy is that of languages that both models know."""
    comments = lines(folder)[::every]
    ours, bare = (_told(kind, 1, every, folder)["guesses"] for kind in (TEXT, BARE))
    for name in sorted({comment.kind for comment in comments}):
        sides = (_side(TEXT, name, comments, ours), _side(BARE, name, comments, bare))
        yield Comparison("languages", f"% right: {name}", *sides)


def _side(detector: str, name: str, comments: Sequence[Labelled], guesses: Sequence[Guess]) -> Side:
    """What a detector makes of the comments of the kind `name`."""
    pairs = [pair for pair in zip(comments, guesses, strict=True) if pair[0].kind == name]
    known = [(one.language, guess and guess[0]) for one, guess in pairs]
    known = [pair for pair in known if pair[0] not in LEFT_OUT]
    result = score([label for label, _ in known], [answer for _, answer in known])
    least = load_settings({}).translation.target_confidence
    reached = reach([one for one, _ in pairs], [guess for _, guess in pairs], least)
    return Side(NAMES[detector], [result.right], _notes(result, reached))


def _others() -> list[str]:
    has_llm = load_settings(os.environ).llm.configured
    has_whisper = whisper.is_installed() and "WHISPER_MODEL" in os.environ
    return [kind for kind, is_there in ((LLM, has_llm), (WHISPER, has_whisper)) if is_there]


def _told(kind: str, rounds: int, every: int, *folder: Path) -> Told:
    say(f"finding languages: {NAMES[kind]}")
    done = subprocess.run(
        command("detection", kind, str(rounds), str(every), *map(str, folder)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessFailed(f"Finding languages failed:\n{done.stderr[-4000:]}")
    told: Told = json.loads(done.stdout)
    return told


def _python_path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def _compare(kind: str, told: Told, base: str, beside: Told, every: int) -> list[Comparison]:
    return [
        Comparison("languages", "% right", _right(kind, told, every), _right(base, beside, every)),
        Comparison("languages", "µs a comment", _pace(kind, told), _pace(base, beside)),
    ]


def _misled(kind: str, told: Told, every: int) -> Side:
    return Side(NAMES[kind], [_score(told, every).misled])


def _right(kind: str, told: Told, every: int) -> Side:
    result, reached = _score(told, every), _reach(told, every)
    notes = _notes(result, reached) | {"% of the wordless answered": result.answered}
    return Side(NAMES[kind], [result.right], notes)


def _notes(result: Score, reached: Reach) -> dict[str, float]:
    return {
        "% of others taken for English": reached.missed,
        "% of English asked about": reached.asked,
        "% wrong": result.wrong,
        "% abstained": result.abstained,
    }


def _pace(kind: str, told: Told) -> Side:
    notes = {"MiB": told["mebibytes"], "s to start": told["start_seconds"]}
    return Side(NAMES[kind], told["microseconds"], notes)


def _score(told: Told, every: int) -> Score:
    pairs = zip(labelled()[::every], told["guesses"], strict=True)
    plain = [
        (comment.language, guess and guess[0]) for comment, guess in pairs if comment.kind in PLAIN
    ]
    return score(*zip(*plain, strict=True))


def _reach(told: Told, every: int) -> Reach:
    least = load_settings({}).translation.target_confidence
    return reach(labelled()[::every], told["guesses"], least)
