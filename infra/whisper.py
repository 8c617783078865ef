"""OpenAI's Whisper, where the extra `backlot[whisper]` is installed."""

from __future__ import annotations

import pickle
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import OperatorError

if TYPE_CHECKING:
    from whisper import Whisper

# Also what a file that is no model of Whisper's ends in.
_LOADING_FAILS = (OSError, RuntimeError, LookupError, TypeError, pickle.UnpicklingError, EOFError)


class WhisperMissing(OperatorError):
    """A setting asks for Whisper, and it is not installed."""

    def __init__(self, setting: str) -> None:
        super().__init__(
            f"{setting} needs Whisper: install the extra with `pip install 'backlot[whisper]'`, "
            "or change the setting."
        )


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
        raise WhisperMissing(setting)


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
