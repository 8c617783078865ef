"""A small history of a made-up community, as a site would export it: `inputs/history.csv`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.community import Shape, make_community

PATH = Path(__file__).parent / "inputs" / "history.csv"
SHAPE = Shape(users=40, videos=60, topics=6, days=14, sittings_per_week=4.0)
UNTIL = datetime(2026, 3, 14, tzinfo=UTC)
SEED = 11


def lines() -> Iterator[str]:
    """The file's lines; `python -m tests.site_history` writes them anew."""
    history = make_community(SEED, SHAPE, until=UNTIL).history
    films = {film.video_id: (f"film-{n}", film) for n, film in enumerate(history.films)}
    yield "time,user,video,kind,minutes,category,owner,completed_at"
    for event in history.events:
        name, film = films[event.video_id]
        minutes = "" if event.seconds is None else round(event.seconds / 60, 2)
        yield (
            f"{event.at.isoformat(timespec='seconds')},{event.user},{name},{event.kind},{minutes},"
            f"{film.category or ''},{film.owner},{film.since.isoformat()}"
        )


def text() -> str:
    """The whole file."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    sys.exit(PATH.write_text(text()) == 0)
