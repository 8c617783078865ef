"""`backlot privacy`: what is held about a person, exported, certified, and forgotten."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_bytes
from typing import IO, TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from backlot.arguments import group
from backlot.database import database_at_hand, operator_name, persons_at_hand
from backlot.output import Json, show, show_table
from backlot.screen import Screen, Yes, require_yes
from backlot.signals import run
from domain.errors import NotFound
from domain.person import VideosFate
from infra.data_folder import objects_path
from infra.errors import ExitCode, OperatorError
from infra.http.shapes import rfc3339
from infra.pseudonyms import UNKNOWN, Pseudonyms
from infra.security_log import SecurityEvent, record
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.erasures import Erasure
    from engine.persons import KnownPerson, Persons
    from infra.objects.port import ObjectStore
    from readapi.erasure import ErasureSearch
    from readapi.privacy import Holding, PersonalData

LOOK_SECONDS = 0.5
INDEX, UNFINISHED = "index.json", "unfinished.json"

app = group("Personal data: what is held about a person, and forgetting one.")

User = Annotated[str, typer.Argument(metavar="USER", help="A user id.", show_default=False)]


class FolderTaken(OperatorError):
    """The folder holds something else than an unfinished export of this person."""


class NobodyHere(OperatorError):
    """The user has no pseudonym."""


@app.command()
def export(
    user: User,
    folder: Annotated[Path, typer.Argument(help="Where the files go; made where it is not there.")],
    as_json: Json = False,
) -> None:
    """Write all that is held about a person; after an interruption the same command goes on."""
    settings = load_settings()
    with database_at_hand(), closing(persons_at_hand(settings)) as persons:
        subject = persons.find(user) or UNKNOWN
        _record(subject, "export")
        index = run(_export(settings, persons, subject, ExportProgress(folder, user)))
    lines = [f"{part['count']:,} {part['part']}" for part in index["index"] if part.get("count")]
    text = "\n".join([*lines, f"written to {folder}; {INDEX} says what each file is"])
    show(text, {"folder": str(folder), **index}, as_json)


@app.command()
def certify(user: User, as_json: Json = False) -> None:
    """Look in every place where something about a person may be. Exit code 1: there is something.

    It fails where nothing was found, and Redis or the object store did not answer.
    """
    settings = load_settings()
    with database_at_hand(), closing(persons_at_hand(settings)) as persons:
        person = persons.look_up(user)
        _record(UNKNOWN if person is None else person.pseudonym, "certify")
        data, holdings = run(_certify(settings, persons, user, person))
    found = sum(each.count or 0 for each in holdings)
    parts = [data.described(each).model_dump(by_alias=True, exclude_none=True) for each in holdings]
    show_table(
        ("part", "found", "where"),
        [
            (each.place.name, "-" if each.count is None else each.count, _where(each))
            for each in holdings
        ],
        {"userId": user, "found": found, "parts": parts},
        as_json,
    )
    if found:
        raise typer.Exit(ExitCode.NOT_WELL)
    raise typer.Exit(ExitCode.FAILED if any(each.is_away for each in holdings) else ExitCode.DONE)


@app.command()
def pseudonym(user: User, as_json: Json = False) -> None:
    """Tell what stands for a user in events, topics and logs."""
    with database_at_hand(), closing(persons_at_hand(load_settings())) as persons:
        found = persons.find(user)
    if found is None:
        raise NobodyHere("no such user was ever here, or they were forgotten")
    _record(found, "pseudonym")
    show(found, {"userId": user, "pseudonym": found}, as_json)


@app.command()
def forget(
    user: User,
    videos: Annotated[
        VideosFate | None,
        typer.Option("--videos", help="What becomes of their videos (FORGET_VIDEOS)."),
    ] = None,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is done.")] = False,
    as_json: Json = False,
) -> None:
    """Forget a user for good: the name, the texts, and what was made from what they did.

    A process with the role workers does it. The same again tells how far it is.
    """
    from commands.erasure import look_up
    from readapi.erasure import ErasureSearch, progress_of

    settings = load_settings()
    with database_at_hand(), closing(persons_at_hand(settings)) as persons:
        try:
            found = look_up(persons, user)
        except NotFound as error:
            raise NobodyHere(f"nobody was ever here as {user!r}") from error
        if found.fenced_at is None:
            require_yes(f"Forget {user}? There is no way back.", yes=yes)
        _request_forgetting(settings, persons, found.pseudonym, videos)
        search = ErasureSearch(persons, persons.database_url)
        progress = progress_of(user, _finished(search, user) if wait else _found(search, user))
    counts = [f"{count:,} {part}" for part, count in sorted(progress.counts.items())]
    first = f"{user} is forgotten"
    if progress.forgotten_at is None:
        first = f"{user} is being forgotten; next or under way: {progress.step}"
    told = progress.model_dump(by_alias=True, exclude_none=True, mode="json")
    show("\n".join([first, *counts]), told, as_json)


def _request_forgetting(
    settings: Settings, persons: Persons, person: str, videos: VideosFate | None
) -> None:
    """Fence the person, and have it on record why; what is requested already records nothing."""
    from commands.erasure import RequestForgetting
    from engine.command_bus import CommandBus
    from engine.event_store import open_recorder

    fate = videos or settings.privacy.forget_videos
    lifetime = settings.auth.max_lifetime
    command = RequestForgetting(person, person, fate, uuid4(), lifetime)

    async def request() -> None:
        bus = CommandBus(recorder)
        try:
            await bus.execute(command, actor=operator_name(), correlation_id=f"forget-{person}")
        finally:
            await bus.close()

    with closing(open_recorder(persons.database_url)) as recorder:
        persons.fence(person)
        run(request())


def _found(search: ErasureSearch, user: str) -> Erasure:
    found = search.find(user)
    if found is None:
        raise NobodyHere(f"{user} is not being forgotten: another database was restored meanwhile")
    return found


def _finished(search: ErasureSearch, user: str) -> Erasure:
    """Return the erasure once it is over; tell each step, and each failure, as it comes."""
    screen, told = Screen(), ""
    while (found := _found(search, user)).finished_at is None:
        line = f"{found.step}: {found.error}, tried again" if found.error else str(found.step)
        if line != told:
            screen.say(line)
            told = line
        time.sleep(LOOK_SECONDS)
    return found


def _where(holding: Holding) -> str:
    source, note = holding.place.source, holding.note
    return source if note is None else f"{source}: {note}"


async def _certify(
    settings: Settings, persons: Persons, user: str, person: KnownPerson | None
) -> tuple[PersonalData, list[Holding]]:
    from readapi.erasure import certificate

    # Who has no pseudonym may have left the name itself.
    subject = user if person is None else person.pseudonym
    async with _opened(settings, persons) as data, data.look(subject) as search:
        return data, await certificate(search, user, person)


async def _export(
    settings: Settings, persons: Persons, subject: str, progress: ExportProgress
) -> dict[str, Any]:
    """Write each part that is not whole yet, then the index; return that."""
    async with _opened(settings, persons) as data, data.look(subject) as search:
        for place in data.distinct():
            if progress.has(place.name):
                continue
            with _private(progress.folder / f"{place.name}.jsonl.part") as out:
                holding = await search.write(place, out, b"\n")
                out.write(b"\n" * bool(out.tell()))
            told = data.described(holding).model_dump(by_alias=True, exclude_none=True)
            progress.add(place.name, told)
    return progress.finish()


def _record(subject: str, command: str) -> None:
    told = {"path": f"backlot privacy {command}", "actor": subject}
    record(SecurityEvent.PERSONAL_DATA_READ, operator_name(), **told)


class ExportProgress:
    """A folder with a file for each part that is whole, and what says which these are."""

    def __init__(self, folder: Path, user: str) -> None:
        """Begin, or go on; raise FolderTaken where the folder is of something else."""
        self.folder = folder
        self._told: dict[str, Any] = {"userId": user, "exportedAt": "", "index": []}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            begun = json.loads((folder / UNFINISHED).read_text())
        except FileNotFoundError:
            if any(folder.iterdir()):
                raise FolderTaken(f"{folder} is not empty: name another folder") from None
            self._save(UNFINISHED)
            return
        if begun["userId"] != user:
            raise FolderTaken(f"{folder} is the export of somebody else: name another folder")
        self._told = begun

    def has(self, part: str) -> bool:
        """Return whether a part is whole."""
        return any(each["part"] == part for each in self._told["index"])

    def add(self, part: str, told: dict[str, Any]) -> None:
        """Count a part as whole, whose file is written."""
        written = self.folder / f"{part}.jsonl.part"
        if written.stat().st_size:
            written.rename(written.with_suffix(""))
        else:
            written.unlink()
        self._told["index"].append(told | {"at": rfc3339(datetime.now(UTC))})
        self._save(UNFINISHED)

    def finish(self) -> dict[str, Any]:
        """Write the index, and return it."""
        self._told["exportedAt"] = rfc3339(datetime.now(UTC))
        self._save(INDEX)
        (self.folder / UNFINISHED).unlink()
        return self._told

    def _save(self, name: str) -> None:
        """Write a file as a whole or not at all."""
        written = self.folder / f"{name}.part"
        with _private(written) as out:
            out.write(json.dumps(self._told, ensure_ascii=False, indent=2).encode())
            out.flush()
            os.fsync(out.fileno())
        written.rename(self.folder / name)


def _private(path: Path) -> IO[bytes]:
    """Open a new file that nobody else can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def personal_data(
    settings: Settings,
    database_url: str,
    redis: Redis | None,
    objects: ObjectStore | None,
    persons: Pseudonyms,
) -> PersonalData:
    """Return what looks for persons in every declared place; None is what can't be reached."""
    from backlot.features import PERSONAL
    from readapi.privacy import PersonalData

    return PersonalData(
        PERSONAL,
        database_url,
        settings.analytics.url(database_url),
        redis,
        objects,
        settings.values(),
        self_service=settings.privacy.privacy_self_service,
        persons=persons,
    )


@asynccontextmanager
async def _opened(settings: Settings, persons: Persons) -> AsyncIterator[PersonalData]:
    from infra.redis import connect_redis

    url, redis = persons.database_url, settings.redis.url
    async with AsyncExitStack() as stack:
        client = None
        if redis is not None:
            client = connect_redis(redis.get_secret_value())
            stack.push_async_callback(client.aclose)
        yield personal_data(settings, url, client, _objects(settings, stack), persons)


def _objects(settings: Settings, stack: AsyncExitStack) -> ObjectStore | None:
    """Return the store, to look into it; None where its folder is on another machine."""
    from infra.objects.folder import FolderStore
    from infra.objects.port import now
    from infra.objects.s3 import S3Store

    if settings.objects.bucket is not None:
        store = S3Store(settings.objects)
        stack.callback(store.close)
        return store
    folder = objects_path(settings.server.data_dir.absolute())
    # Nothing here signs a URL.
    ttl = settings.objects.url_ttl
    return FolderStore(folder, token_bytes(32), ttl, now) if folder.exists() else None
