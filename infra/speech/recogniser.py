"""Whisper's recogniser, as a process of its own: `python -m infra.speech.recogniser MODEL FILE`.

Its memory ends with it, and it can be stopped in the middle, which a thread can't.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from infra.errors import OperatorError
from infra.whisper import load

FULL_SCALE = 32_768.0


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
