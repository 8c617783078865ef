"""A person's own stream: the request to be forgotten, and that it was done."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid5

from domain.errors import NotFound
from domain.model import Aggregate, Origin, Personal

NAMESPACE = UUID("6f0a4a55-9f1d-5d7c-8f5e-3c0a8d1be24f")


def stream_id(person: str) -> UUID:
    """Return the stream of one person, by the pseudonym: `uuid5(NAMESPACE, person)`."""
    return uuid5(NAMESPACE, person)


class VideosFate(StrEnum):
    """What becomes of the videos of somebody who is forgotten: `keep` leaves them to nobody."""

    DELETE = "delete"
    KEEP = "keep"


class Person(Aggregate):
    """A user as far as forgetting goes: requested once, done once; there is no way back."""

    TOPIC = "person"

    class Event(Aggregate.Event):
        person: Annotated[str, Personal("person")]

    class ForgetRequested(Event):
        """`videos` is one of VideosFate."""

        TOPIC = "person.forget_requested.v1"
        videos: str

        def apply(self, person: Person) -> None:
            person.requested_at = self.timestamp
            person.videos = VideosFate(self.videos)

    class Forgotten(Event):
        """Nothing is left but the pseudonym; `counts` is what was removed, by part."""

        TOPIC = "person.forgotten.v1"
        FORGETS = "person"
        counts: dict[str, int]

        def apply(self, person: Person) -> None:
            person.forgotten_at = self.timestamp
            person.counts = self.counts

    def __init__(self) -> None:
        self.requested_at: datetime | None = None
        self.forgotten_at: datetime | None = None
        self.videos = VideosFate.DELETE
        self.counts: dict[str, int] = {}

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return stream_id(fields["person"])

    def request_forgetting(self, person: str, videos: VideosFate, origin: Origin) -> None:
        """Ask for the person to be forgotten; the first request decides what becomes of videos."""
        if self.requested_at is None:
            self.record(self.ForgetRequested, origin, person=person, videos=str(videos))

    def finish_forgetting(self, person: str, counts: dict[str, int], origin: Origin) -> None:
        """Tell that it is done; what was told records nothing. Raise NotFound before a request."""
        if self.requested_at is None:
            raise NotFound("Nobody asked to have this user forgotten.")
        if self.forgotten_at is None:
            self.record(self.Forgotten, origin, person=person, counts=counts)
