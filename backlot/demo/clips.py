"""The films of the demo: made here with ffmpeg, or a tiny one that is part of the package."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

FFMPEG_SECONDS = 60

ENCODING = {
    "-c:v": "libx264",
    "-preset": "ultrafast",
    "-pix_fmt": "yuv420p",
    "-c:a": "aac",
    "-b:a": "96k",
    "-movflags": "+faststart",
}
# Noise at a fixed rate does not compress away: 11 MB, more than one part of the default size.
LARGE = {
    "-vf": "noise=alls=25:allf=t",
    "-b:v": "20M",
    "-minrate": "20M",
    "-maxrate": "20M",
    "-bufsize": "20M",
}


@dataclass(frozen=True)
class Clip:
    """A film to upload; `source` says where it came from, and why from there."""

    title: str
    description: str
    category: str
    filename: str
    path: Path
    source: str

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size


def make_clips(folder: Path) -> list[Clip]:
    """Three MP4 films (H.264, AAC); made in `folder` as far as ffmpeg is there and able."""
    test_pattern, test_source = _film(
        folder / "test-pattern.mp4", "testsrc2=size=1280x720:rate=30:duration=4", LARGE
    )
    bars, bars_source = _film(
        folder / "colour-bars.mp4", "smptehdbars=size=640x360:rate=24:duration=4", {}
    )
    return [
        Clip(
            "A test pattern in the rain",
            "Four seconds of moving colours, noise and an even tone.",
            "nature",
            "test-pattern.mp4",
            test_pattern,
            test_source,
        ),
        Clip(
            "Colour bars, director's cut",
            "They do not move, and that is the point.",
            "art",
            "colour-bars.mp4",
            bars,
            bars_source,
        ),
        Clip(
            "Four seconds, counted aloud",
            "Comes with Backlot, so it is the same everywhere.",
            "art",
            "counting.mp4",
            bundled(),
            "bundled with Backlot",
        ),
    ]


def bundled() -> Path:
    """The film that is part of the package."""
    return Path(str(files("backlot.demo") / "sample.mp4"))


def _film(path: Path, picture: str, extra: Mapping[str, str]) -> tuple[Path, str]:
    """The film of a picture source and a tone at `path`, or else the bundled one; and why."""
    if shutil.which("ffmpeg") is None:
        return bundled(), "bundled (ffmpeg is not installed)"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y"]
    for source in (picture, "sine=frequency=440:duration=4"):
        command += ["-f", "lavfi", "-i", source]
    for option in {**ENCODING, **extra}.items():
        command += option
    command.append(str(path))
    try:
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=FFMPEG_SECONDS
        )
    except subprocess.TimeoutExpired:
        return bundled(), "bundled (ffmpeg took too long)"
    if ended.returncode != 0:
        complaint = (ended.stderr.strip().splitlines() or ["it said nothing"])[0]
        return bundled(), f"bundled (ffmpeg failed: {complaint})"
    return path, "made with ffmpeg"
