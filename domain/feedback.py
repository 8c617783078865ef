"""Lists of recommendations as they were given to users, and what may be reported of them.

A list names itself: its id holds its offers, and is signed for the user that it was given to. So
nothing is stored when a list is made, and nobody reports anything of a list that was not theirs.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha1
from typing import NamedTuple, Self
from uuid import UUID

from domain.errors import Invalid, NotFound

SHOWN = "recommendation.shown"
CHOSEN = "recommendation.chosen"
"""The topics of what is reported."""

HOUR = timedelta(hours=1)
REPORTED_WITHIN = timedelta(hours=24)
"""Of a list given longer ago nothing can be reported any more."""

HEAD = struct.Struct(">BIi")
"""Of an id: the version of this form, the hour since 1970 in UTC, and the experiment or -1."""
OFFER = struct.Struct(">16sBB")
VERSION = 1
NO_EXPERIMENT = -1
SIGNATURE_BYTES = 15
"""So that the whole is a multiple of three bytes, which base64 writes without padding."""


class Signal(StrEnum):
    """What mainly brought a video into a list."""

    NEIGHBOUR = "neighbour"
    SIMILAR = "similar"
    CATEGORY = "category"
    TRENDING = "trending"
    NEW = "new"
    LLM = "llm"
    OTHER = "other"
    POPULAR = "popular"


class Variant(StrEnum):
    """Whose settings offered a video: the only ones, or those of one of two teams."""

    DEFAULT = "default"
    A = "a"
    B = "b"


# An id holds their places: what is new goes to the end.
SIGNALS: Sequence[Signal] = tuple(Signal)
VARIANTS: Sequence[Variant] = tuple(Variant)


class Offer(NamedTuple):
    """A video in a list, and where it came from."""

    video_id: UUID
    source: Signal
    variant: Variant = Variant.DEFAULT


class ListUnknown(NotFound):
    """No such list was given to this user."""


class ListTooOld(ListUnknown):
    """It was given too long ago."""


@dataclass(frozen=True, slots=True)
class GivenList:
    """What was offered to a user; `hour` is the beginning of the hour in which it was given.

    `experiment` names the pair of settings that were compared, if any were: 31 bits.
    """

    user_id: str
    hour: datetime
    offers: Sequence[Offer]
    experiment: int | None = None

    @classmethod
    def given(
        cls, user_id: str, at: datetime, offers: Iterable[Offer], experiment: int | None = None
    ) -> Self:
        """Return the list that a user is given at a time (UTC)."""
        hour = at.replace(minute=0, second=0, microsecond=0)
        return cls(user_id, hour, tuple(offers), experiment)

    @classmethod
    def opened(cls, list_id: str, user_id: str, key: bytes) -> Self:
        """Return the list of an id; raise ListUnknown for one that was not given to this user."""
        try:
            whole = base64.b64decode(list_id.encode(), altchars=b"-_", validate=True)
            # Python takes "+" and "/" as well: the same list would have several ids.
            if base64.urlsafe_b64encode(whole).decode() != list_id:
                raise ListUnknown("No such list was given to you.")
            told, signature = whole[:-SIGNATURE_BYTES], whole[-SIGNATURE_BYTES:]
            if not hmac.compare_digest(signature, _signature(told, user_id, key)):
                raise ListUnknown("No such list was given to you.")
            version, hours, experiment = HEAD.unpack_from(told)
            offers = OFFER.iter_unpack(told[HEAD.size :])
            if version != VERSION:
                raise ListUnknown("The list was given by another release.")
            return cls(
                user_id,
                datetime.fromtimestamp(hours * HOUR.total_seconds(), UTC),
                tuple(
                    Offer(UUID(bytes=video), SIGNALS[source], VARIANTS[variant])
                    for video, source, variant in offers
                ),
                None if experiment == NO_EXPERIMENT else experiment,
            )
        except (UnicodeEncodeError, binascii.Error, struct.error, IndexError):
            raise ListUnknown("No such list was given to you.") from None

    def signed(self, key: bytes) -> str:
        """Return the id of the list, which only its user can open.

        It has 32 characters, and 24 for each offer.
        """
        experiment = NO_EXPERIMENT if self.experiment is None else self.experiment
        told = HEAD.pack(VERSION, int(self.hour.timestamp()) // 3600, experiment) + b"".join(
            OFFER.pack(
                offer.video_id.bytes, SIGNALS.index(offer.source), VARIANTS.index(offer.variant)
            )
            for offer in self.offers
        )
        whole = told + _signature(told, self.user_id, key)
        return base64.urlsafe_b64encode(whole).decode()

    @property
    def id(self) -> UUID:
        """What a user is given within an hour, as one: however often it is asked for again."""
        return hour_id(self.user_id, self.hour)

    def require_reportable(self, now: datetime) -> None:
        """Raise ListTooOld where it was given too long ago."""
        if now - self.hour > REPORTED_WITHIN + HOUR:
            raise ListTooOld("That list was given too long ago to be reported on.")

    def places(self, videos: Iterable[UUID]) -> list[int]:
        """Return where these videos stand in the list, from 1; raise Invalid for any other."""
        places = {offer.video_id: place for place, offer in enumerate(self.offers, 1)}
        wanted = list(dict.fromkeys(videos))
        if strange := [str(video) for video in wanted if video not in places]:
            raise Invalid(f"Not in that list: {', '.join(strange)}.")
        return [places[video] for video in wanted]

    def report_id(self, topic: str, place: int) -> UUID:
        """Return the id of the event that says so of a place: the same whenever it is reported."""
        told = "\n".join(map(str, (topic, self.experiment, *self.offers[place - 1])))
        return _uuid(self.id.bytes + told.encode())


def hour_id(user_id: str, hour: datetime) -> UUID:
    """Return the id of all that a user is given in the hour that begins then."""
    return _uuid(f"lists\n{int(hour.timestamp())}\n{user_id}".encode())


def _uuid(told: bytes) -> UUID:
    return UUID(bytes=sha1(told, usedforsecurity=False).digest()[:16], version=5)


def _signature(told: bytes, user_id: str, key: bytes) -> bytes:
    # Of two texts as one, the first ends where no user's name goes on.
    return hmac.digest(key, f"{user_id}\0".encode() + told, "sha256")[:SIGNATURE_BYTES]
