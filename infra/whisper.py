"""OpenAI's Whisper, where the extra `backlot[whisper]` is installed.

As a process of its own, `python -m infra.whisper MODEL FILE` tells what is said in a file.
"""

from __future__ import annotations

import json
import pickle
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import OperatorError

if TYPE_CHECKING:
    from whisper import Whisper

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768.0
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


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(listen(sys.argv[1], Path(sys.argv[2]))))
    except OperatorError as error:
        sys.exit(str(error))
