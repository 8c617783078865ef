"""Plays the script against a server, and keeps what the server acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from backlot.calls import CallFailed
from backlot.demo.calls import Person
from backlot.demo.clips import Clip
from backlot.demo.script import SECOND_THOUGHT, Afterthought, Liking, ViewerRole, Visit
from backlot.upload.api import Details
from backlot.upload.file import LocalFile
from backlot.upload.transfer import Transfer, TransferPlan

PEOPLE_AT_ONCE = 16
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
    """Upload a clip as `backlot upload` does; `sent` is told of bytes sent."""
    details: Details = {
        "title": clip.title,
        "description": clip.description,
        "category": clip.category,
        "filename": clip.filename,
        "contentType": "video/mp4",
        "sizeBytes": clip.size_bytes,
    }
    with LocalFile(clip.path) as file:
        started = await studio.uploads.start(details, str(uuid4()))
        plan = TransferPlan.begun(started, file.size)
        done = await Transfer(studio.uploads, file, plan, progress=sent).run()
        beginning = b"".join([block async for block in file.blocks(0, min(FIRST_BYTES, file.size))])
    return Film(clip, str(done.video_id), done.size_bytes, plan.part_count, beginning)


async def play(
    roles: list[ViewerRole], enter: Callable[[str], Person], stage: Stage
) -> list[Person]:
    """Everybody plays their role, many at once; returns the people, in the order of the roles."""
    at_once = asyncio.Semaphore(PEOPLE_AT_ONCE)

    async def appear(role: ViewerRole) -> Person:
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
    answer = await person.bytes(film.play_url, f"bytes=0-{FIRST_BYTES - 1}")
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
