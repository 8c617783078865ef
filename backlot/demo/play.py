"""Plays the script against a server, and keeps what the server acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from backlot.demo.calls import CallFailed, Person
from backlot.demo.clips import Clip
from backlot.demo.script import SECOND_THOUGHT, Afterthought, Liking, Role, Visit

PARTS_AT_ONCE = 4
PEOPLE_AT_ONCE = 16
URLS_AT_ONCE = 1000
FIRST_BYTES = 64 * 1024

LIKE_CALLS: dict[Liking, tuple[str, ...]] = {
    Liking.NOT: (),
    Liking.SET: ("PUT",),
    Liking.TOGGLE: ("POST",),
    Liking.TAKE_BACK: ("POST", "DELETE"),
    Liking.WAVER: ("POST", "POST", "POST"),
}


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


@dataclass
class Stage:
    """The films that are on, what did not go as it should, and whom to tell about each visit."""

    films: list[Film]
    visited: Callable[[], None]
    surprises: list[str] = field(default_factory=list)

    def expect(self, what: str, expected: object, found: object) -> None:
        """Note it when the server says something else than what was done."""
        if expected != found:
            self.surprises.append(f"{what}: expected {expected!r}, found {found!r}")


async def upload(studio: Person, clip: Clip, sent: Callable[[int], None]) -> Film:
    """Upload a clip in parts, several at once, and complete it; `sent` is told of bytes sent."""
    started = await studio.command("POST", "/uploads", _details(clip))
    path = f"/uploads/{started['uploadId']}"
    part_bytes: int = started["partSizeBytes"]
    at_once = asyncio.Semaphore(PARTS_AT_ONCE)

    async def send(part: dict[str, Any]) -> dict[str, Any]:
        number: int = part["number"]
        async with at_once:
            content = await asyncio.to_thread(
                _read, clip.path, (number - 1) * part_bytes, part_bytes
            )
            answer = await studio.bytes("PUT", part["url"], content=content)
        sent(len(content))
        return {"number": number, "etag": answer.headers["ETag"]}

    urls = await _part_urls(studio, path, started)
    parts = await asyncio.gather(*map(send, urls))
    done = await studio.command("POST", f"{path}/complete", {"parts": parts})
    beginning = await asyncio.to_thread(_read, clip.path, 0, FIRST_BYTES)
    return Film(clip, done["videoId"], done["sizeBytes"], len(parts), beginning)


def _details(clip: Clip) -> dict[str, Any]:
    return {
        "title": clip.title,
        "description": clip.description,
        "category": clip.category,
        "filename": clip.filename,
        "contentType": "video/mp4",
        "sizeBytes": clip.size_bytes,
    }


async def _part_urls(studio: Person, path: str, started: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that came with the start, and those that are still to be asked for."""
    urls: list[dict[str, Any]] = list(started["parts"])
    missing = list(range(len(urls) + 1, started["partCount"] + 1))
    for first in range(0, len(missing), URLS_AT_ONCE):
        numbers = missing[first : first + URLS_AT_ONCE]
        answer = await studio.command("POST", f"{path}/part-urls", {"numbers": numbers})
        urls += answer["parts"]
    return urls


def _read(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


async def play(roles: list[Role], enter: Callable[[str], Person], stage: Stage) -> list[Person]:
    """Everybody plays their role, many at once; returns the people, in the order of the roles."""
    at_once = asyncio.Semaphore(PEOPLE_AT_ONCE)

    async def appear(role: Role) -> Person:
        async with at_once:
            person = enter(role.name)
            for visit in role.visits:
                try:
                    await _attend(person, visit, stage)
                except CallFailed as error:
                    stage.surprises.append(f"{role.name}: {error}")
                stage.visited()
            return person

    return await asyncio.gather(*map(appear, roles))


async def _attend(person: Person, visit: Visit, stage: Stage) -> None:
    film = stage.films[visit.video]
    await _watch(person, visit, film, stage)
    await _like(person, visit, film, stage)
    await _comment(person, visit, film, stage)
    if visit.share is not None:
        await person.command("POST", f"/videos/{film.video_id}/share", {"channel": visit.share})
        film.shares += 1


async def _watch(person: Person, visit: Visit, film: Film, stage: Stage) -> None:
    path = f"/videos/{film.video_id}"
    session = await person.command("POST", f"{path}/watch")
    film.views += 1
    film.play_url = session["url"]
    answer = await person.bytes("GET", film.play_url, byte_range=f"bytes=0-{FIRST_BYTES - 1}")
    stage.expect(
        f"{film.clip.title}: status of a range", httpx.codes.PARTIAL_CONTENT, answer.status_code
    )
    if answer.content != film.beginning:
        stage.surprises.append(f"{film.clip.title}: other bytes are played than were uploaded")
    watched = {"sessionId": session["sessionId"], "seconds": visit.seconds_watched}
    await person.command("POST", f"{path}/watch-time", watched)


async def _like(person: Person, visit: Visit, film: Film, stage: Stage) -> None:
    path = f"/videos/{film.video_id}/like"
    for method in LIKE_CALLS[visit.liking]:
        state = await person.command(method, path)
        change = film.likers.add if state["hasLiked"] else film.likers.discard
        change(person.name)
    wanted = visit.liking not in (Liking.NOT, Liking.TAKE_BACK)
    seen = await person.query(path)
    stage.expect(f"{film.clip.title}: liked by {person.name}", wanted, seen["hasLiked"])


async def _comment(person: Person, visit: Visit, film: Film, stage: Stage) -> None:
    if visit.comment is None or visit.language is None:
        return
    posted = await person.command(
        "POST", f"/videos/{film.video_id}/comments", {"content": visit.comment}
    )
    comment_id: str = posted["commentId"]
    film.comments[comment_id] = visit.comment
    film.languages.add(visit.language)
    if visit.afterthought is Afterthought.EDIT:
        better = SECOND_THOUGHT.format(content=visit.comment)
        await person.command("PATCH", f"/comments/{comment_id}", {"content": better})
        film.comments[comment_id] = better
    elif visit.afterthought is Afterthought.DELETE:
        await person.command("DELETE", f"/comments/{comment_id}")
        del film.comments[comment_id]
