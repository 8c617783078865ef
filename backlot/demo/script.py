"""Who does what in the demo: the same for every run, and known before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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


class Liking(StrEnum):
    """How a viewer comes to like a video, or not."""

    NOT = "not"
    SET = "set"
    TOGGLE = "toggle"
    TAKE_BACK = "take back"
    WAVER = "waver"


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
class Visit:
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
    visits: tuple[Visit, ...]


def cast(viewers: int, videos: int) -> list[ViewerRole]:
    """The roles of `viewers` people, each of whom watches every one of the videos."""
    return [
        ViewerRole(name_of(number), tuple(_visit(number, video) for video in range(videos)))
        for number in range(viewers)
    ]


def name_of(number: int) -> str:
    """A viewer's user id; a number is added once the names are used up."""
    turn, index = divmod(number, len(NAMES))
    return NAMES[index] if turn == 0 else f"{NAMES[index]}-{turn + 1}"


def _visit(number: int, video: int) -> Visit:
    mixed = number + 2 * video
    language, comment = COMMENTS[(number + 5 * video) % len(COMMENTS)]
    speaks = mixed % 4 != 3
    return Visit(
        video=video,
        seconds_watched=1 + mixed % 6 / 2,
        liking=LIKINGS[mixed % len(LIKINGS)],
        language=language if speaks else None,
        comment=comment if speaks else None,
        afterthought=AFTERTHOUGHTS[mixed % len(AFTERTHOUGHTS)],
        share=CHANNELS[mixed % len(CHANNELS)] if mixed % 6 == 0 else None,
    )
