"""What tests of comments that not everybody sees have recorded and ask for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from domain.comment import Comment
from domain.model import Origin
from domain.moderation import (
    ActingAs,
    Hold,
    HoldCause,
)
from tests.unit.given_when_then import by, fact

ANN, ALICE, MOD, EVE = by("ann"), by("alice"), by("mod"), by("eve")
OWNER, MODERATOR = ActingAs.OWNER, ActingAs.MODERATOR
VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
KEYS: dict[str, Any] = {"video_id": VIDEO, "author": "ann"}
HOLD = Hold(HoldCause.APPROVAL, "alice")
WATCHED = Hold(HoldCause.WATCHED_WORD, "alice")
NO_REASON = {"stated_reason": None}

POSTED = fact(Comment.Posted, ANN, **KEYS, content="One")
SUBMITTED = fact(
    Comment.Submitted, ANN, **KEYS, content="One", cause="approval", video_owner="alice"
)
RESUBMITTED = fact(Comment.Resubmitted, ANN, **KEYS, content="Two", revision=2, cause="approval")
WITHHELD = fact(
    Comment.Withheld,
    ANN,
    **KEYS,
    content="Two",
    revision=2,
    cause="watched_word",
    video_owner="alice",
)
EDITED = fact(Comment.Edited, ANN, **KEYS, content="Two")
DELETED = fact(Comment.Deleted, ANN, **KEYS)
WITHDRAWN = fact(Comment.Withdrawn, ANN, **KEYS)


def removed(acted_as: ActingAs, origin: Origin = MOD) -> Any:
    return fact(Comment.Removed, origin, **KEYS, acted_as=acted_as, stated_reason="rude")


def rejected(acted_as: ActingAs, origin: Origin = MOD) -> Any:
    return fact(Comment.Rejected, origin, **KEYS, acted_as=acted_as, stated_reason="rude")


def restored(acted_as: ActingAs = MODERATOR, origin: Origin = MOD) -> Any:
    return fact(Comment.Restored, origin, **KEYS, content="One", acted_as=acted_as, **NO_REASON)


def approved(origin: Origin = MOD, acted_as: ActingAs = MODERATOR, content: str = "One") -> Any:
    return fact(Comment.Approved, origin, **KEYS, content=content, acted_as=acted_as)


def remove(acted_as: ActingAs = MODERATOR, origin: Origin = MOD, why: str | None = "rude") -> Any:
    return lambda comment: comment.remove(acted_as, why, origin)


def restore(acted_as: ActingAs = MODERATOR, origin: Origin = MOD) -> Any:
    return lambda comment: comment.restore(acted_as, None, origin)


def approve(
    acted_as: ActingAs = MODERATOR, revision: int | None = None, origin: Origin = MOD
) -> Any:
    return lambda comment: comment.approve(acted_as, revision, origin)


def edit(content: str, hold: Hold | None = None, origin: Origin = ANN) -> Any:
    return lambda comment: comment.edit(content, origin, hold)


def delete(comment: Comment) -> None:
    comment.delete(ANN)
