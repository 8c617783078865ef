"""Models of Whisper without any training: the whole of its code, and nonsense for answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from infra import whisper

MULTILINGUAL, ENGLISH = 51_865, 51_864
"""How many tokens each kind of model knows."""


def needs_whisper() -> None:
    """Skip without the extra; in CI too, where it is an install of gigabytes."""
    if not whisper.is_installed():
        pytest.skip("Whisper is not installed: pip install 'backlot[whisper]'")


def save_untrained(path: Path, tokens: int = MULTILINGUAL) -> str:
    """Keep a tiny model with random weights in a file, the same ones each time; its path."""
    import torch
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(7)
    dimensions = ModelDimensions(80, 1500, 64, 2, 1, tokens, 448, 64, 2, 1)
    model = Whisper(dimensions)
    # Whisper leaves it to the weights: it is whatever was in the memory.
    torch.nn.init.normal_(model.decoder.positional_embedding)
    torch.save({"dims": asdict(dimensions), "model_state_dict": model.state_dict()}, path)
    return str(path)
