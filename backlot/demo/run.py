"""One run of the demo, from looking for the server to the verdict."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx

from backlot.calls import CallFailed
from backlot.database import NoSecret, signing_secret
from backlot.demo.client import DemoFailed, Lanes, Meter, Person
from backlot.demo.report import DemoReport, Line, ReadBackCounts, read_back, show
from backlot.demo.script import (
    SECOND_THOUGHT,
    Afterthought,
    Clip,
    Film,
    Liking,
    Stage,
    ViewerRole,
    Visit,
    cast,
    make_clips,
)
from backlot.screen import BYTES, Screen
from backlot.signals import run
from backlot.upload.api import Details
from backlot.upload.file import LocalFile
from backlot.upload.transfer import Transfer, TransferPlan
from infra.errors import ExitCode
from infra.http.auth import mint_token
from infra.settings import Settings

PEOPLE_AT_ONCE = 16
FIRST_BYTES = 64 * 1024

LIKE_CALLS: dict[Liking, tuple[str, ...]] = {
    Liking.NOT: (),
    Liking.SET: ("PUT",),
    Liking.TOGGLE: ("POST",),
    Liking.TAKE_BACK: ("POST", "DELETE"),
    Liking.WAVER: ("POST", "POST", "POST"),
}


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


STUDIO = "studio"
TOKEN_LIFETIME = timedelta(hours=6)
PATIENCE_SECONDS = 60.0


def run_demo(url: str, *, settings: Settings, viewers: int = 25, as_json: bool = False) -> int:
    """Play the demo against the server at `url` (no slash at the end); returns the exit code.

    0 when everything that was read back is what was done, else 1. Raises OperatorError when
    there is no Backlot at `url`, or none that takes this machine's tokens.
    """
    report = run(_run(url, settings, viewers))
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        show(report)
    for mismatch in report.mismatches:
        print(f"differs: {mismatch}", file=sys.stderr)
    return ExitCode.DONE if report.ok else ExitCode.NOT_WELL


async def _run(url: str, settings: Settings, viewers: int) -> DemoReport:
    started = time.perf_counter()
    meter, screen = Meter(), Screen()
    try:
        async with _client(url) as http:
            await _find_server(http, url)
            http.event_hooks = {"request": [meter.count]}
            door = Door(http, meter, settings)
            studio = door.enter(STUDIO)
            await _try_token(studio, url)
            films = await _premiere(studio, screen)
            stage, counts = await _first_day(films, viewers, door, screen)
    except CallFailed as error:
        raise DemoFailed(f"the demo was broken off: {error}") from error
    languages = sorted(set[str]().union(*(film.languages for film in films)))
    return DemoReport(
        url=url,
        viewers=viewers,
        lines=[_line(url, film, found) for film, found in zip(films, counts, strict=True)],
        languages=languages,
        shares=sum(film.shares for film in films),
        requests=meter.requests,
        errors=dict(meter.errors),
        p50_ms=meter.percentile_ms(0.50),
        p99_ms=meter.percentile_ms(0.99),
        seconds=time.perf_counter() - started,
        mismatches=stage.surprises,
    )


def _client(url: str) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            base_url=url, transport=Lanes(PEOPLE_AT_ONCE), timeout=PATIENCE_SECONDS
        )
    except httpx.InvalidURL as error:
        raise DemoFailed(f"--url: {url!r} is not a URL ({error})") from error


async def _find_server(http: httpx.AsyncClient, url: str) -> None:
    """Raise DemoFailed unless a Backlot answers there, with every part of it."""
    try:
        answer = await http.get("/readyz")
        parts = answer.json()["parts"].items()
    except httpx.UnsupportedProtocol as error:
        raise DemoFailed(f"--url: {url!r} has to start with http:// or https://") from error
    except httpx.TransportError as error:
        raise DemoFailed(f"no server at {url}: start one with `make up`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DemoFailed(f"what answers at {url} is not Backlot: give its --url") from error
    if not answer.is_success:
        missing = ", ".join(name for name, state in parts if not state["ok"])
        raise DemoFailed(f"the server at {url} is not ready ({missing}): see its log")


async def _try_token(studio: Person, url: str) -> None:
    try:
        await studio.query("/videos/liked", {"limit": 1})
    except CallFailed as error:
        if error.status != httpx.codes.UNAUTHORIZED:
            raise
        raise DemoFailed(
            f"the server at {url} refuses this machine's tokens: "
            "set the BACKLOT_DATA_DIR or JWT_SECRET that it runs with"
        ) from error


class Door:
    """Lets people in: each with a token of their own, as `backlot token` mints it."""

    def __init__(self, http: httpx.AsyncClient, meter: Meter, settings: Settings) -> None:
        self._http, self._meter, self._settings = http, meter, settings
        try:
            self._secret = signing_secret(settings)
        except NoSecret as error:
            raise DemoFailed(f"the demo can't make tokens for its viewers: {error}") from error

    def enter(self, name: str) -> Person:
        """The person of that name."""
        token = mint_token(
            self._secret,
            name,
            ttl=TOKEN_LIFETIME,
            issuer=self._settings.auth.issuer,
            audience=self._settings.auth.audience,
        )
        return Person(self._http, self._meter, name, token)


async def _premiere(studio: Person, screen: Screen) -> list[Film]:
    with tempfile.TemporaryDirectory(prefix="backlot-demo-") as folder:
        clips = await asyncio.to_thread(make_clips, Path(folder))
        for clip in clips:
            screen.say(f"{clip.filename}: {clip.size_bytes:,} bytes, {clip.source}")
        total = sum(clip.size_bytes for clip in clips)
        with screen.act("uploading", total, BYTES) as act:
            return [await upload(studio, clip, act.advance) for clip in clips]


async def _first_day(
    films: list[Film], viewers: int, door: Door, screen: Screen
) -> tuple[Stage, list[ReadBackCounts]]:
    roles = cast(viewers, len(films))
    visits = sum(len(role.visits) for role in roles)
    with screen.act("watching", visits, "visits") as act:
        stage = Stage(films, act.advance)
        people = await play(roles, door.enter, stage)
    screen.say("reading everything back")
    return stage, await read_back(door.enter(STUDIO), people, stage)


def _line(url: str, film: Film, found: ReadBackCounts) -> Line:
    path = f"{url}/videos/{film.video_id}"
    return Line(
        video_id=film.video_id,
        title=film.clip.title,
        source=film.clip.source,
        size_bytes=film.size_bytes,
        parts=film.parts,
        views=found.views,
        likes=found.likes,
        comments=found.comments,
        urls={"play": film.play_url, "video": path, "comments": f"{path}/comments"},
    )
