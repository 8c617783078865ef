"""Reads everything back through the query API, and compares it with what was acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backlot.demo.calls import Person
from backlot.demo.play import Film, Stage

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
