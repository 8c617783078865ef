"""What both applications say on the wire: shapes, times, and positions as opaque tokens.

Shapes that only one of them has stand beside their routes.
"""

from __future__ import annotations

import base64
import re
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from domain.comment import TranslationStatus
from domain.moderation import ActingAs, HoldCause
from domain.revocations import Revocation
from domain.upload import CommentPolicy, Visibility
from infra.pseudonyms import Pseudonyms

APPLICATION = "backlot"
POSITION = re.compile(rf"{APPLICATION}:([0-9]{{1,18}})(?::([0-9]{{1,18}}))?")
REMEMBERED = 1_000
VIDEO_ID = "5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa"


def _in_utc(time: datetime) -> datetime:
    if time.utcoffset() != timedelta(0):
        raise ValueError("must be in UTC")
    return time


Time = Annotated[datetime, AfterValidator(_in_utc)]
"""A time on the wire: RFC 3339 in UTC, which ends with `Z`. Any other zone is a fault of ours."""


def rfc3339(time: datetime, timespec: str = "auto") -> str:
    """Return a time as text that ends with `Z`; `timespec` as `datetime.isoformat` has it."""
    return time.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


class PersonMark:
    """Marks a field that names a person: a pseudonym inside of the program."""


UserId = Annotated[str, PersonMark()]
"""A person in an answer: the pseudonym, in whose place clients get the user id."""


class Wire(BaseModel):
    """A JSON object, camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema; no member of an answer is null, since that is left out."""
        schema = handler(core_schema)
        members = handler.resolve_ref_schema(schema).get("properties", {})
        members.update({name: without_null(member) for name, member in members.items()})
        return schema

    @classmethod
    @cache
    def may_name(cls) -> PersonFields:
        """Return where objects of this class name persons."""
        return _person_fields(cls)

    def persons(self) -> Iterator[tuple[Wire, str]]:
        """Yield each field that names a person, as the object that has it and its name."""
        own, nested = _person_fields(type(self))
        for name in own:
            if getattr(self, name) is not None:
                yield self, name
        for name in nested:
            value = getattr(self, name)
            for each in value if isinstance(value, list) else (value,):
                if isinstance(each, Wire):
                    yield from each.persons()

    def to_json(self, names: Mapping[str, str] | None = None) -> bytes:
        """UTF-8 JSON; fields without a value are left out, persons have their `names`.

        The object is as before then: it may be kept, and told again.
        """
        if not names:
            return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_none=True)
        places = [(vars(shape), name) for shape, name in self.persons()]
        pseudonyms = [fields[name] for fields, name in places]
        for fields, name in places:
            fields[name] = names.get(fields[name], fields[name])
        try:
            return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_none=True)
        finally:
            for (fields, name), pseudonym in zip(places, pseudonyms, strict=True):
                fields[name] = pseudonym


def name_persons(shapes: Iterable[Wire], persons: Pseudonyms) -> None:
    """Put user ids in place of pseudonyms; may ask the database."""
    places = [(vars(shape), name) for each in shapes for shape, name in each.persons()]
    names = persons.names({fields[name] for fields, name in places})
    for fields, name in places:
        fields[name] = names.get(fields[name], fields[name])


class PersonFields(NamedTuple):
    """The fields of a shape that name persons, and those whose own fields may."""

    own: tuple[str, ...]
    nested: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.own or self.nested)


@cache
def _person_fields(shape: type[Wire], above: tuple[type[Wire], ...] = ()) -> PersonFields:
    own, nested = [], []
    for name, found in shape.model_fields.items():
        if any(isinstance(mark, PersonMark) for mark in _marks(found)):
            own.append(name)
        elif any(
            inner is shape or (inner not in above and _person_fields(inner, (*above, shape)))
            for inner in _shapes_in(found.annotation)
        ):
            nested.append(name)
    return PersonFields(tuple(own), tuple(nested))


def _marks(field: FieldInfo) -> Iterator[object]:
    """Yield what a field is annotated with, also where it may be None."""
    yield from field.metadata
    for inner in get_args(field.annotation):
        yield from getattr(inner, "__metadata__", ())


def _shapes_in(annotation: object) -> Iterator[type[Wire]]:
    if isinstance(annotation, type) and issubclass(annotation, Wire):
        yield annotation
    for inner in get_args(annotation):
        yield from _shapes_in(inner)


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema for whatever the given one admits beside null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if not kinds or len(kinds) == len(schema["anyOf"]):
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    given = {} if schema.get("default") is None else {"default": schema["default"]}
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **rest, **given}


class RequestBody(Wire):
    """What a client sends: a member that is not its own is refused."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema; null may be sent, and clears what can be cleared."""
        return handler(core_schema)


class ArrivedPart(Wire):
    """A part that the store holds."""

    number: int
    etag: str
    size_bytes: int


class UploadStatus(Wire):
    """How an upload stands, to resume it."""

    upload_id: UUID
    video_id: UUID
    status: Literal["started", "completed", "aborted", "expired"]
    size_bytes: int
    part_size_bytes: int
    part_count: int
    parts: list[ArrivedPart]


class Video(Wire):
    """A video as viewers see it; `has_liked` only where the caller is known.

    `comment_policy`: on one video that not everybody may comment on at once.
    """

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    title: str
    description: str | None = None
    category: str | None = None
    owner_id: UserId
    status: Literal["completed"]
    visibility: Visibility
    duration_seconds: float | None = None
    spoken_language: str | None = None
    created_at: Time
    likes: int
    comments: int
    views: int
    has_liked: bool | None = None
    comment_policy: CommentPolicy | None = None


class LikeState(Wire):
    """Whether the caller, where known, likes it; how many do, their own action included."""

    has_liked: bool | None = None
    likes_count: Annotated[int, Field(examples=[42])]


class Comment(Wire):
    """A comment as viewers see it; with a `status`, not everybody does.

    A reply has a `parent_id`; `reply_count` tells how many replies a comment has that is none
    itself. Reads tell both counts of what everybody sees, and `has_liked` where the caller is
    known. `status_reason` and `removed_by` tell of a removal. `held_for` and `revision`, the
    number of its texts, are for those who may approve it.
    """

    comment_id: UUID
    video_id: UUID
    parent_id: UUID | None = None
    user_id: UserId
    content: str
    language: str | None = None
    confidence: float | None = None
    translated_text: str | None = None
    translation_status: TranslationStatus
    edited: bool
    created_at: Time
    reply_count: int | None = None
    like_count: int | None = None
    has_liked: bool | None = None
    status: Literal["held", "removed"] | None = None
    status_reason: str | None = None
    removed_by: ActingAs | None = None
    held_for: HoldCause | None = None
    revision: int | None = None


class RevokedToken(Wire):
    """A revocation: one token by its `jti`, or all that were issued to a user up to `revokedAt`.

    After `endsAt` no such token can be valid any more, and the revocation is dropped.
    """

    revocation_id: UUID
    jti: str | None = None
    user_id: UserId | None = None
    reason: str
    revoked_by: UserId
    revoked_at: Time
    ends_at: Time

    @classmethod
    def of(cls, revocation: Revocation) -> Self:
        """Return the revocation as operators see it."""
        return cls(
            revocation_id=revocation.id,
            jti=revocation.jti,
            user_id=revocation.user_id,
            reason=revocation.reason,
            revoked_by=revocation.revoked_by,
            revoked_at=revocation.at,
            ends_at=revocation.ends_at,
        )


class InvalidPosition(ValueError):
    """The token was not made by this store."""


class Position(NamedTuple):
    """How much was recorded, in both orders: that of the event log, and that of the telemetry."""

    events: int = 0
    telemetry: int = 0

    def covers(self, other: Position) -> bool:
        """Return whether all that the other includes is included here."""
        return self.events >= other.events and self.telemetry >= other.telemetry


BEGINNING = Position()


@lru_cache(REMEMBERED)
def encode_position(events: int, telemetry: int = 0) -> str:
    """Return the token for a position (from 0); it names its store, so that shards can be added."""
    numbers = f"{events}:{telemetry}" if telemetry else f"{events}"
    # Digits, colons and that name lead to neither of the characters that URLs write otherwise.
    token = b2a_base64(f"{APPLICATION}:{numbers}".encode(), newline=False)
    return token.decode().rstrip("=")


def latest_position(tokens: str) -> Position:
    """Return the position that includes those of all the tokens, which commas part.

    Raise InvalidPosition.
    """
    positions = [decode_position(token.strip()) for token in tokens.split(",")]
    return Position(*map(max, zip(*positions, strict=True)))


@lru_cache(REMEMBERED)
def decode_position(token: str) -> Position:
    """Return the position in a token; raise InvalidPosition for anything else."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidPosition(
            "The position token is unreadable; send back one as received."
        ) from error
    found = POSITION.fullmatch(text)
    if found is None:
        raise InvalidPosition(
            "The position token is not one of this store; send back one as received."
        )
    return Position(*(int(number) for number in found.groups(default="0")))
