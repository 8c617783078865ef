"""The result of a demo, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from backlot import output
from backlot.demo.client import Person
from backlot.demo.script import Film, Stage


@dataclass(frozen=True)
class Line:
    """One video: its counts are those that the query API gave."""

    video_id: str
    title: str
    source: str
    size_bytes: int
    parts: int
    views: int
    likes: int
    comments: int
    urls: dict[str, str]


@dataclass(frozen=True)
class DemoReport:
    """What happened; `mismatches` is empty when everything read back is what was done."""

    url: str
    viewers: int
    lines: list[Line]
    languages: list[str]
    shares: int
    requests: int
    errors: dict[str, int]
    p50_ms: float
    p99_ms: float
    seconds: float
    mismatches: list[str]

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def totals(self) -> dict[str, int]:
        """Over all videos."""
        return {
            "videos": len(self.lines),
            "views": sum(line.views for line in self.lines),
            "likes": sum(line.likes for line in self.lines),
            "comments": sum(line.comments for line in self.lines),
            "shares": self.shares,
        }

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it; durations in ms, sizes in bytes."""
        return {
            "url": self.url,
            "ok": self.ok,
            "viewers": self.viewers,
            "totals": self.totals(),
            "languages": self.languages,
            "videos": [_camel(asdict(line)) for line in self.lines],
            "requests": self.requests,
            "errors": sum(self.errors.values()),
            "errorKinds": self.errors,
            "latencyMs": {"p50": round(self.p50_ms, 2), "p99": round(self.p99_ms, 2)},
            "seconds": round(self.seconds, 2),
            "mismatches": self.mismatches,
        }

    def sentences(self) -> Iterator[str]:
        """What is told below the table."""
        totals = self.totals()
        yield (
            f"{self.viewers} viewers: {totals['videos']} videos, {totals['views']} views, "
            f"{totals['likes']} likes, {totals['comments']} comments in {len(self.languages)} "
            f"languages, {totals['shares']} shares"
        )
        failed = sum(self.errors.values())
        yield (
            f"{self.requests} requests in {self.seconds:.1f} s, {failed} errors, "
            f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"
        )
        verdict = "everything read back is what was done"
        yield verdict if self.ok else f"{len(self.mismatches)} things differ from what was done"
        yield ""
        yield f"  API        {self.url}/docs"
        for line in self.lines:
            yield f"  {line.title}"
            for name, url in line.urls.items():
                yield f"    {name:<9}{url}"


def _camel(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        head + "".join(word.capitalize() for word in rest): value
        for name, value in fields.items()
        for head, *rest in [name.split("_")]
    }


MOST_LISTS = 50


@dataclass(frozen=True)
class ReadBackCounts:
    """What the query API says about one video."""

    views: int
    likes: int
    comments: int


async def read_back(studio: Person, people: Sequence[Person], stage: Stage) -> list[ReadBackCounts]:
    """The counts of each film; whatever differs from what was done is noted on the stage."""
    await _close(studio, stage.films, len(people))
    counts = [await _film(studio, film, stage) for film in stage.films]
    titles = {film.video_id: film.clip.title for film in stage.films}
    for person in people[:MOST_LISTS]:
        liked = {titles[item["videoId"]] for item in await _liked(person, titles)}
        done = {film.clip.title for film in stage.films if person.name in film.likers}
        stage.expect(f"videos that {person.name} likes", sorted(done), sorted(liked))
    return counts


async def _close(studio: Person, films: Sequence[Film], viewers: int) -> None:
    """The studio's last word on each film: whoever sees its effect sees all that came before."""
    for film in films:
        told = f"{film.clip.description} Seen by {viewers} on its first day."
        await studio.command("PATCH", f"/videos/{film.video_id}", {"description": told})


async def _film(studio: Person, film: Film, stage: Stage) -> ReadBackCounts:
    path, title = f"/videos/{film.video_id}", film.clip.title
    video = await studio.query(path)
    found = ReadBackCounts(video["views"], video["likes"], video["comments"])
    done = ReadBackCounts(film.views, len(film.likers), len(film.comments))
    stage.expect(title, done, found)
    comments = {item["commentId"]: item["content"] for item in await studio.all(f"{path}/comments")}
    if comments != film.comments:
        differing = len(comments.items() ^ film.comments.items())
        stage.surprises.append(f"{title}: {differing} comments differ from what was written")
    return found


async def _liked(person: Person, titles: dict[str, str]) -> list[dict[str, str]]:
    """The person's liked videos that belong to this run: the newest, so on the first page."""
    page = await person.query("/videos/liked", {"limit": 100})
    return [item for item in page["items"] if item["videoId"] in titles]


HEADINGS = ("video", "MB", "parts", "views", "likes", "comments")


def show(report: DemoReport) -> None:
    """The summary, on standard output."""
    console = Console(width=output.width())
    rows = [
        (e.title, f"{e.size_bytes / 1e6:.2f}", *map(str, (e.parts, e.views, e.likes, e.comments)))
        for e in report.lines
    ]
    title = f"Backlot's first day, at {report.url}"
    framed = _framed(title, rows)
    anywhere = console.options.update(max_width=output.UNLIMITED)
    if console.measure(framed, options=anywhere).maximum <= console.width:
        console.print(framed)
    else:
        _say(console, title, *output.table(HEADINGS, rows, console.width))
    _say(console, *report.sentences())


def _framed(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
