"""The program, which tells the files of the product whose functions ran.

Run as `python -m tests.traced_program up`. Whenever a file `ask` appears in its working folder, it
writes their paths since the last time into `told`, a line each, and removes `ask`.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from backlot.cli import main
from tests.structure import PACKAGES, ROOT

ASK, TOLD = Path("ask"), Path("told")
SOURCES = tuple(f"{ROOT / package}/" for package in PACKAGES)

ran: set[str] = set()


def note(frame: FrameType, event: str, _: Any) -> None:
    """Note the file of a function that is called; importing a module is not a call."""
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(SOURCES) and code.co_name != "<module>":
        ran.add(code.co_filename)


def answer() -> None:
    """Tell what ran, each time that somebody asks."""
    while True:
        time.sleep(0.02)
        if ASK.exists():
            told = sorted(str(Path(each).relative_to(ROOT)) for each in ran.copy())
            ran.clear()
            TOLD.write_text("".join(f"{each}\n" for each in told))
            ASK.unlink()


if __name__ == "__main__":
    threading.Thread(target=answer, daemon=True).start()
    threading.setprofile(note)
    sys.setprofile(note)
    main()
