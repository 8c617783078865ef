"""What a run of `backlot upload` left for the shell that started it."""

from __future__ import annotations

import json
from collections.abc import Callable


class Ran:
    """What one run left for a shell: exit code and output."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def told(self) -> dict[str, object]:
        assert self.code == 0, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def complaint(self) -> str:
        """The one line that says what is wrong."""
        assert (self.code, self.out) == (4, "")
        lines = [line for line in self.err.splitlines() if line.startswith("backlot: ")]
        assert len(lines) == 1
        assert "Traceback" not in self.err
        return lines[0]


Upload = Callable[..., Ran]
"""Uploads the film (or another `path`, to another `url`) with these options."""
