"""Who does what in the demo: the same for every run, and known before anything is sent."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from importlib.resources import files
from pathlib import Path

# fmt: off
NAMES = (
    "ana", "bola", "chen", "dilnoza", "emeka", "farid", "greta", "hana", "ivan", "jana", "kofi",
    "lucia", "marek", "nadia", "omar", "priya", "quentin", "rosa", "sara", "tariq", "ulla",
    "vikram", "wei", "ximena", "yuki", "zofia",
)
# fmt: on
CHANNELS = ("mail", "chat", "link")

COMMENTS = (
    ("en", "I could watch these colours all day."),
    ("es", "¡Qué bonito! El ruido parece lluvia de verdad."),
    ("de", "Der Ton geht mir nicht mehr aus dem Kopf."),
    ("fr", "On dirait un tableau qui respire."),
    ("pt", "Vi três vezes e ainda não entendi o final."),
    ("it", "Il mio gatto è rimasto incantato."),
    ("ja", "色の動きがとてもきれいですね。"),
    ("zh", "这个测试画面居然这么好看。"),
    ("ar", "الألوان رائعة والصوت هادئ."),
    ("ru", "Лучшая настроечная таблица, что я видел."),
    ("hi", "रंग बहुत सुंदर हैं, धन्यवाद!"),
    ("ko", "빗소리처럼 들려서 마음이 편해져요."),
)
SECOND_THOUGHT = "✎ {content} 👏"


class Liking(Enum):
    """How a viewer comes to like a video, or not: the methods of the calls."""

    NOT = ()
    SET = ("PUT",)
    TOGGLE = ("POST",)
    TAKE_BACK = ("POST", "DELETE")
    WAVER = ("POST", "POST", "POST")


class Afterthought(StrEnum):
    """What becomes of a viewer's comment."""

    KEEP = "keep"
    EDIT = "edit"
    DELETE = "delete"


LIKINGS = (
    Liking.TOGGLE,
    Liking.SET,
    Liking.TAKE_BACK,
    Liking.TOGGLE,
    Liking.NOT,
    Liking.WAVER,
    Liking.SET,
)
AFTERTHOUGHTS = (
    Afterthought.KEEP,
    Afterthought.KEEP,
    Afterthought.EDIT,
    Afterthought.KEEP,
    Afterthought.DELETE,
)


@dataclass(frozen=True)
class DemoVisit:
    """What one viewer does with one video, in the order of the fields."""

    video: int
    seconds_watched: float
    liking: Liking
    language: str | None
    comment: str | None
    afterthought: Afterthought
    share: str | None


@dataclass(frozen=True)
class ViewerRole:
    """One viewer, and what they do one after the other."""

    name: str
    visits: tuple[DemoVisit, ...]


def cast(viewers: int, videos: int) -> list[ViewerRole]:
    """Return the roles of `viewers` people, each of whom watches all videos."""
    return [
        ViewerRole(name_of(number), tuple(_visit(number, video) for video in range(videos)))
        for number in range(viewers)
    ]


def name_of(number: int) -> str:
    """Return a viewer's user id; a number is added once the names are used up."""
    turn, index = divmod(number, len(NAMES))
    return NAMES[index] if turn == 0 else f"{NAMES[index]}-{turn + 1}"


def _visit(number: int, video: int) -> DemoVisit:
    mixed = number + 2 * video
    language, comment = COMMENTS[(number + 5 * video) % len(COMMENTS)]
    speaks = mixed % 4 != 3
    return DemoVisit(
        video=video,
        seconds_watched=1 + mixed % 6 / 2,
        liking=LIKINGS[mixed % len(LIKINGS)],
        language=language if speaks else None,
        comment=comment if speaks else None,
        afterthought=AFTERTHOUGHTS[mixed % len(AFTERTHOUGHTS)],
        share=CHANNELS[mixed % len(CHANNELS)] if mixed % 6 == 0 else None,
    )


FFMPEG_SECONDS = 60

ENCODING = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -c:a aac -b:a 96k -movflags +faststart"
# Noise at a fixed rate does not compress away: 11 MB, more than one part of the default size.
LARGE = "-vf noise=alls=25:allf=t -b:v 20M -minrate 20M -maxrate 20M -bufsize 20M"


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
    """Return three MP4 films (H.264, AAC); ffmpeg makes two of them in `folder` if it can."""
    rain, bars = "test-pattern.mp4", "colour-bars.mp4"
    return [
        Clip(
            "A test pattern in the rain",
            "Four seconds of moving colours, noise and an even tone.",
            "nature",
            rain,
            *_film(folder / rain, "testsrc2=size=1280x720:rate=30:duration=4", LARGE),
        ),
        Clip(
            "Colour bars, director's cut",
            "They do not move, and that is the point.",
            "art",
            bars,
            *_film(folder / bars, "smptehdbars=size=640x360:rate=24:duration=4"),
        ),
        Clip(
            "Four seconds, counted aloud",
            "Comes with Backlot, so it is the same everywhere.",
            "art",
            "counting.mp4",
            bundled_film(),
            "bundled with Backlot",
        ),
    ]


def bundled_film() -> Path:
    """Return the path of the film that is part of the package."""
    return Path(str(files("backlot.demo") / "sample.mp4"))


def _film(path: Path, picture: str, extra: str = "") -> tuple[Path, str]:
    """Make a film of a picture source and a tone at `path`; return its path and its source.

    Return the bundled film where ffmpeg can't make one; the source then says why.
    """
    if shutil.which("ffmpeg") is None:
        return bundled_film(), "bundled (ffmpeg is not installed)"
    inputs = f"-f lavfi -i {picture} -f lavfi -i sine=frequency=440:duration=4"
    options = f"-nostdin -loglevel error -y {inputs} {ENCODING} {extra}".split()
    command = ["ffmpeg", *options, str(path)]
    try:
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=FFMPEG_SECONDS
        )
    except subprocess.TimeoutExpired:
        return bundled_film(), "bundled (ffmpeg took too long)"
    if ended.returncode != 0:
        complaint = (ended.stderr.strip().splitlines() or ["it said nothing"])[0]
        return bundled_film(), f"bundled (ffmpeg failed: {complaint})"
    return path, "made with ffmpeg"


@dataclass(frozen=True)
class ReadBackCounts:
    """What the query API says about one video."""

    views: int = 0
    likes: int = 0
    comments: int = 0


@dataclass
class Film:
    """An uploaded video, and what people did with it as far as it was acknowledged."""

    clip: Clip
    video_id: str
    size_bytes: int
    parts: int
    beginning: bytes
    play_url: str = ""
    views: int = 0
    shares: int = 0
    likers: set[str] = field(default_factory=set)
    comments: dict[str, str] = field(default_factory=dict)
    languages: set[str] = field(default_factory=set)
    read_back: ReadBackCounts = ReadBackCounts()


@dataclass
class Stage:
    """The films that are on, what did not go as it should, and whom to tell about each visit."""

    films: list[Film]
    visited: Callable[[], None]
    surprises: list[str] = field(default_factory=list)

    def expect(self, what: str, expected: object, found: object) -> None:
        """Note a difference between what was done and what the server says."""
        if expected != found:
            self.surprises.append(f"{what}: expected {expected!r}, found {found!r}")
