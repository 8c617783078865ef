"""Forgetting a user: the request, and what the program decides in its course."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, ClassVar, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response

from commands.endpoint import executor
from commands.uploads import UploadCommand
from domain.comment import Comment
from domain.errors import NotFound
from domain.model import Origin, is_reserved
from domain.person import Person, VideosFate, stream_id
from domain.revocations import STREAM_ID, Revocations
from domain.upload import Status
from engine.command_bus import Aggregates, Command, Query
from engine.persons import KnownPerson, Persons
from infra.http.auth import Admin, Caller
from infra.http.problems import Problem, problems
from infra.http.shapes import Wire

REASON = "forgotten on request"


def look_up(persons: Persons, user_id: str) -> KnownPerson:
    """Return a user whom somebody wants forgotten; raise NotFound of one who was never here.

    Nobody forgets those to whom kept videos belong.
    """
    found = None if is_reserved(user_id) else persons.look_up(user_id)
    if found is None:
        raise NotFound("There is no such user.")
    return found


class Forgetting(Wire):
    """Whether the user, as the call names them, is forgotten already."""

    user_id: str
    status: Literal["forgetting", "forgotten"]


@dataclass(frozen=True)
class RequestForgetting(Command[Forgetting]):
    """Have a person forgotten who is fenced; no token of theirs lives longer than `lifetime`."""

    despite_fence: ClassVar[bool] = True

    person: str
    told_as: str
    videos: VideosFate
    revocation_id: UUID
    lifetime: timedelta

    def streams(self) -> Sequence[UUID]:
        return (stream_id(self.person), STREAM_ID)

    def decide(self, aggregates: Aggregates, origin: Origin) -> Forgetting:
        person = aggregates.get(Person, stream_id(self.person))
        if person.requested_at is None:
            person.request_forgetting(self.person, self.videos, origin)
            revocations = aggregates.get(Revocations, STREAM_ID)
            revocations.revoke_user(self.revocation_id, self.person, REASON, self.lifetime, origin)
        status: Literal["forgetting", "forgotten"]
        status = "forgetting" if person.forgotten_at is None else "forgotten"
        return Forgetting(user_id=self.told_as, status=status)


class ForgettingFacts(NamedTuple):
    """What the log says of the forgetting of a person."""

    is_requested: bool
    videos: VideosFate


@dataclass(frozen=True)
class FindForgetting(Query[ForgettingFacts]):
    """Asks what was requested of a person."""

    person: str

    def streams(self) -> Sequence[UUID]:
        return (stream_id(self.person),)

    def decide(self, aggregates: Aggregates, origin: Origin) -> ForgettingFacts:
        person = aggregates.get(Person, stream_id(self.person))
        return ForgettingFacts(person.requested_at is not None, person.videos)


@dataclass(frozen=True)
class FinishForgetting(Command[dict[str, int]]):
    """Record that a person is forgotten, with what was removed; answer with what is on record."""

    person: str
    counts: dict[str, int]

    def streams(self) -> Sequence[UUID]:
        return (stream_id(self.person),)

    def decide(self, aggregates: Aggregates, origin: Origin) -> dict[str, int]:
        person = aggregates.get(Person, stream_id(self.person))
        person.finish_forgetting(self.person, self.counts, origin)
        return person.counts


@dataclass(frozen=True)
class EraseComment(Command[None]):
    """Take away a comment whose author is being forgotten, whoever sees it."""

    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> None:
        aggregates.get(Comment, self.comment_id).erase(origin)


class ErasedUpload(NamedTuple):
    """What has become of an upload; where it is not kept, the store may have something left."""

    kept: bool
    object_key: str
    store_upload_id: str


@dataclass(frozen=True)
class EraseUpload(UploadCommand[ErasedUpload]):
    """End the upload of an owner who is being forgotten, or leave the video to the heir."""

    owner: str
    heir: str | None

    def decide(self, aggregates: Aggregates, origin: Origin) -> ErasedUpload:
        upload = self.upload(aggregates)
        upload.erase(self.owner, self.heir, origin)
        kept = upload.status is Status.COMPLETED
        return ErasedUpload(kept, upload.object_key, upload.store_upload_id)


@dataclass(frozen=True)
class ErasureTerms:
    """Who is who, what becomes of videos by default, and whether users may ask by themselves."""

    persons: Persons
    videos: VideosFate
    self_service: bool


async def _terms(request: Request) -> ErasureTerms:
    terms: ErasureTerms = request.app.state.erasure
    return terms


Terms = Annotated[ErasureTerms, Depends(_terms)]
UserId = Annotated[str, Path(min_length=1, max_length=128, examples=["alice"])]

router = APIRouter(tags=["privacy"])


# Before `/users/{user_id}`, which would take the word for a user id.
@router.delete(
    "/users/me",
    status_code=202,
    response_model=Forgetting,
    responses=problems(401, 403, 409, 422, 503),
    summary="Forget the caller, where a setting allows that",
)
async def forget_me(
    request: Request, caller: Caller, terms: Terms, videos: VideosFate | None = None
) -> Response:
    if not terms.self_service:
        raise Problem(403, "forbidden", "Here an operator has users forgotten: ask for it.")
    person = caller.person
    names = await asyncio.to_thread(terms.persons.names, [person])
    return await _forget(request, terms, person, names.get(person, person), videos)


@router.delete(
    "/users/{user_id}",
    status_code=202,
    response_model=Forgetting,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Forget a user",
)
async def forget_user(
    user_id: UserId,
    request: Request,
    _: Admin,
    terms: Terms,
    videos: VideosFate | None = None,
) -> Response:
    found = await asyncio.to_thread(look_up, terms.persons, user_id)
    return await _forget(request, terms, found.pseudonym, user_id, videos)


async def _forget(
    request: Request, terms: ErasureTerms, person: str, told_as: str, videos: VideosFate | None
) -> Response:
    execute = await executor(request)
    # First of all, so that nothing is taken any more that came behind the request.
    await asyncio.to_thread(terms.persons.fence, person)
    lifetime = request.app.state.authenticator.max_lifetime
    revocation = execute.fresh_id("revocation")
    fate = videos or terms.videos
    return await execute(RequestForgetting(person, told_as, fate, revocation, lifetime), status=202)
