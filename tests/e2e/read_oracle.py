"""What may be answered, by the event log: every answer is as of a moment, and no client's go back.

An answer is checked when all is over: each thing that it tells has to be so at a position that is
not before any that its client was told of, or has seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import is_
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from domain.comment import Comment
from domain.model import Aggregate
from domain.moderation import Standing
from domain.upload import Status, Upload
from domain.video_likes import VideoLikes
from infra.http.shapes import BEGINNING, Position

T = TypeVar("T")
V = TypeVar("V")

# Of a video's comments, as many are asked for.
NEWEST = 20
# A query that names no position waits so long for a read model.
WAIT_SECONDS = 2.0
CLOCK_SECONDS = 0.1


class Timeline(Generic[T]):
    """What something was, from which position on."""

    def __init__(self, first: T) -> None:
        self.positions = [0]
        self._values = [first]

    @property
    def last(self) -> T:
        return self._values[-1]

    def put(self, position: int, value: T) -> None:
        self.positions.append(position)
        self._values.append(value)

    def at(self, position: int) -> T:
        return self._values[self._place(position)]

    def since(self, floor: int, holds: Callable[[T], object]) -> int | None:
        """The first position, from there on, at which this holds of it; None where none is."""
        for place in range(self._place(floor), len(self._values)):
            if holds(self._values[place]):
                return max(floor, self.positions[place])
        return None

    def map(self, change: Callable[[T], V]) -> Timeline[V]:
        """What is made of it, from which position on."""
        mapped = Timeline(change(self._values[0]))
        for position, value in zip(self.positions[1:], self._values[1:], strict=True):
            mapped.put(position, change(value))
        return mapped

    def _place(self, position: int) -> int:
        return bisect_right(self.positions, position) - 1


class VideoState(NamedTuple):
    """An upload at one position."""

    owner: str = ""
    title: str = ""
    visibility: str = ""
    status: Status | None = None

    def shows(self, person: str | None) -> bool:
        """Whether this person finds a video there."""
        is_video = self.status is Status.COMPLETED
        return is_video and (self.visibility != "private" or self.owner == person)

    def lists(self, person: str | None = None) -> bool:
        """Whether it is in a list; where that is a person's own, whoever may see it."""
        is_video = self.status is Status.COMPLETED
        return is_video and (self.visibility == "public" or self.owner == person)


NOTHING = VideoState()
ShownComment = tuple[str, str, str, bool]


class History:
    """What everything was at every position of the log, and of the telemetry."""

    def __init__(
        self,
        events: Iterable[tuple[int, Aggregate.Event]],
        views: Iterable[tuple[int, UUID, str | None]],
        names: Mapping[str, str],
    ) -> None:
        """`views` have their places in the telemetry and their viewers.

        `names` are the user ids of the pseudonyms.
        """
        self._names = names
        self.uploads: defaultdict[str, Timeline[VideoState]]
        self.uploads = defaultdict(lambda: Timeline(NOTHING))
        self.likes: defaultdict[str, Timeline[int]] = defaultdict(lambda: Timeline(0))
        self.fans: defaultdict[tuple[str, str], Timeline[bool]]
        self.fans = defaultdict(lambda: Timeline(False))
        self.comments: defaultdict[str, Timeline[tuple[ShownComment, ...]]]
        self.comments = defaultdict(lambda: Timeline(()))
        self.views: defaultdict[str, Timeline[int]] = defaultdict(lambda: Timeline(0))
        self._aggregates: dict[UUID, Any] = {}
        self._posted: dict[UUID, int] = {}
        # Where each person has done something, in the log and in the telemetry.
        self._deeds: defaultdict[str, tuple[list[int], list[int]]]
        self._deeds = defaultdict(lambda: ([0], [0]))
        for position, event in events:
            self._deeds[names.get(event.actor, event.actor)][0].append(position)
            self._take(position, event)
        for place, video, viewer in views:
            self._deeds[names.get(viewer or "", "")][1].append(place)
            counted = self.views[str(video)]
            counted.put(place, counted.last + 1)

    def last_deed(self, person: str, told: Position) -> Position:
        """The last thing that a person has done up to there: not every command records any."""
        own = zip(self._deeds[person], told, strict=True)
        return Position(*(places[bisect_right(places, most) - 1] for places, most in own))

    def _take(self, position: int, event: Aggregate.Event) -> None:
        if not isinstance(event, Upload.Event | Comment.Event | VideoLikes.Event):
            return
        known = self._aggregates.get(event.originator_id)
        aggregate = self._aggregates[event.originator_id] = event.mutate(known)
        if isinstance(event, Upload.Event):
            owner = self._names.get(aggregate.owner, aggregate.owner)
            shown = (owner, aggregate.title, str(aggregate.visibility), aggregate.status)
            self.uploads[str(event.originator_id)].put(position, VideoState(*shown))
        elif isinstance(event, VideoLikes.Event):
            video, delta = str(event.video_id), 1 if aggregate.liked else -1
            self.likes[video].put(position, self.likes[video].last + delta)
            fan = self._names.get(event.viewer, event.viewer)
            self.fans[video, fan].put(position, aggregate.liked)
        else:
            self._comment(position, aggregate)

    def _comment(self, position: int, comment: Comment) -> None:
        self._posted.setdefault(comment.id, position)
        timeline = self.comments[str(comment.video_id)]
        others = [each for each in timeline.last if each[0] != str(comment.id)]
        if comment.standing is Standing.POSTED:
            author = self._names.get(comment.author, comment.author)
            edited = comment.revision > 1
            others.append((str(comment.id), author, comment.content, edited))
        others.sort(key=lambda each: self._posted[UUID(each[0])], reverse=True)
        timeline.put(position, tuple(others))


class Answer(NamedTuple):
    """What a client was answered, by which start of which process, and when.

    `what` is `command` where something was done, else what was asked for, of a video if need be.
    """

    client: str
    person: str | None
    what: str
    video: str | None
    status: int
    body: Mapping[str, Any]
    told: Position
    process: str = ""
    began: float = 0.0
    ended: float = 0.0


class Claim(NamedTuple):
    """One thing that an answer tells."""

    name: str
    timeline: Timeline[Any]
    holds: Callable[[Any], object]
    # Stats are as new as what their caller did, and as stats that were told.
    is_stats: bool = False
    of_telemetry: bool = False


class Known(NamedTuple):
    """Up to where a client knows everything, and up to where its stats do."""

    seen: Position = BEGINNING
    stats: Position = BEGINNING


@dataclass
class Oracle:
    """Holds all answers against the log; `faults` tells of those that can't be."""

    history: History
    faults: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    # Those that say that they are older than what was told before.
    admitted: list[Answer] = field(default_factory=list)
    _likes: dict[tuple[str, str], Timeline[tuple[int, bool]]] = field(default_factory=dict)
    _lists: dict[tuple[str, str | None], list[tuple[str, Timeline[bool]]]] = field(
        default_factory=dict
    )

    def check(self, answers: Sequence[Answer], refused: Sequence[Answer] = ()) -> None:
        """Check what clients were answered, each client's in their order.

        Who was `refused` in the end may have waited as well.
        """
        known: defaultdict[str, Known] = defaultdict(Known)
        for answer in answers:
            was = known[answer.client]
            if answer.what == "command":
                deed = BEGINNING
                if answer.person is not None:
                    deed = self.history.last_deed(answer.person, answer.told)
                known[answer.client] = Known(latest(was.seen, answer.told), latest(was.stats, deed))
            else:
                self.checked[f"{answer.what} {answer.status}"] += 1
                known[answer.client] = self._checked(answer, was)
        self._check_admitted([*answers, *refused])

    def _checked(self, answer: Answer, was: Known) -> Known:
        """What the client knows after the answer; each claim is held against what was known."""
        seen, stats = was
        if answer.what != "stats":
            seen = latest(seen, answer.told)
            if not answer.told.covers(was.seen):
                self._admit(answer)
        for claim in self._claims(answer):
            floor = was.stats if claim.is_stats else was.seen
            at = self._since(answer, claim, floor)
            if at is None:
                self.faults.append(self._fault(answer, claim, floor))
                continue
            place = Position(0, at) if claim.of_telemetry else Position(at)
            if claim.is_stats:
                stats = latest(stats, place)
            else:
                seen = latest(seen, place)
        return Known(seen, stats)

    def _since(self, answer: Answer, claim: Claim, floor: Position) -> int | None:
        """Since when a claim is so; of what its client knew, if the answer does not admit less."""
        at = claim.timeline.since(floor[claim.of_telemetry], claim.holds)
        if at is None and not answer.told.covers(floor):
            self._admit(answer)
            least = min(floor[claim.of_telemetry], answer.told[claim.of_telemetry])
            at = claim.timeline.since(least, claim.holds)
        return at

    def _admit(self, answer: Answer) -> None:
        if answer not in self.admitted[-1:]:
            self.admitted.append(answer)

    def _check_admitted(self, answers: Sequence[Answer]) -> None:
        """Only where somebody has waited in vain for the same process, an answer may be older."""
        slow = [each for each in answers if each.ended - each.began >= WAIT_SECONDS - CLOCK_SECONDS]
        for answer in self.admitted:
            if not any(
                each.process == answer.process
                and each.began <= answer.ended - WAIT_SECONDS + CLOCK_SECONDS
                for each in slow
            ):
                self.faults.append(f"older, and nobody has waited: {answer}")

    def _fault(self, answer: Answer, claim: Claim, floor: Position) -> str:
        return f"{answer.what} of {answer.video}: {claim.name} not since {floor}: {answer}"

    def _claims(self, answer: Answer) -> Iterator[Claim]:
        if answer.what in ("videos", "own", "liked"):
            yield from self._claims_of_list(answer)
            return
        assert answer.video is not None
        upload = self.history.uploads[answer.video]
        if answer.what == "upload":
            gone = (None, Status.REMOVED)
            told = answer.body.get("status")
            yield Claim(
                "status", upload, lambda was: told == (None if was.status in gone else was.status)
            )
            return
        is_there = answer.status == 200
        yield Claim("there", upload, lambda was: was.shows(answer.person) is is_there)
        if not is_there:
            return
        if answer.what == "video":
            yield from self._claims_of_video(answer.person, answer.body)
        elif answer.what == "like":
            yield from self._claims_of_likes(answer, answer.video)
        elif answer.what == "comments":
            items = tuple(
                (each["commentId"], each["userId"], each["content"], each["edited"])
                for each in answer.body["items"]
            )
            shown = self.history.comments[answer.video]
            yield Claim("comments", shown, lambda was: was[:NEWEST] == items)
        else:
            yield from self._claims_of_stats(answer, answer.video)

    def _claims_of_likes(self, answer: Answer, video: str) -> Iterator[Claim]:
        told = answer.body["likesCount"], answer.body.get("hasLiked")
        yield self._claim_of_likes(video, answer.person, told)

    def _claim_of_likes(
        self, video: str, person: str | None, told: tuple[int, bool | None]
    ) -> Claim:
        """How many like a video, with whether one of them is this person."""
        likes = self.history.likes[video]
        if person is None:
            return Claim("likes", likes, lambda was: (was, None) == told)
        if (video, person) not in self._likes:
            fan, both = self.history.fans[video, person], Timeline((0, False))
            for position in likes.positions:
                both.put(position, (likes.at(position), fan.at(position)))
            self._likes[video, person] = both
        return Claim("likes", self._likes[video, person], lambda was: was == told)

    def _claims_of_video(self, person: str | None, told: Mapping[str, Any]) -> Iterator[Claim]:
        video, history = told["videoId"], self.history
        details = told["ownerId"], told["title"], told["visibility"]
        yield Claim(
            "details",
            history.uploads[video],
            lambda was: (was.owner, was.title, was.visibility) == details,
        )
        yield self._claim_of_likes(video, person, (told["likes"], told.get("hasLiked")))
        yield Claim("comments", history.comments[video], lambda was: len(was) == told["comments"])
        yield Claim("views", history.views[video], lambda was: was == told["views"], False, True)

    def _claims_of_list(self, answer: Answer) -> Iterator[Claim]:
        shown = {each["videoId"] for each in answer.body["items"]}
        key = answer.what, answer.person
        if key not in self._lists:
            self._lists[key] = list(self._listed(*key))
        for video, listed in self._lists[key]:
            name = f"{video} in the list: {video in shown}"
            yield Claim(name, listed, partial(is_, video in shown))
        for each in answer.body["items"]:
            yield from self._claims_of_video(answer.person, each)

    def _listed(self, what: str, person: str | None) -> Iterator[tuple[str, Timeline[bool]]]:
        """Each video, with whether it is in a list."""
        for video, upload in list(self.history.uploads.items()):
            if what == "liked":
                assert person is not None
                yield video, self._liked(video, person)
            elif what == "own":
                yield video, upload.map(lambda was: was.owner == person and was.lists(person))
            else:
                yield video, upload.map(lambda was: was.lists())

    def _liked(self, video: str, fan: str) -> Timeline[bool]:
        """Whether a video is among those that a person likes: it has to be listed, too."""
        timeline = Timeline(False)
        likes, upload = self.history.fans[video, fan], self.history.uploads[video]
        for position in sorted({*likes.positions, *upload.positions}):
            timeline.put(position, likes.at(position) and upload.at(position).lists(fan))
        return timeline

    def _claims_of_stats(self, answer: Answer, video: str) -> Iterator[Claim]:
        totals, history = answer.body["totals"], self.history
        stats = True
        yield Claim("likes", history.likes[video], lambda was: was == totals["likes"], stats)
        comments = history.comments[video]
        yield Claim("comments", comments, lambda was: len(was) == totals["comments"], stats)
        yield Claim("views", history.views[video], lambda was: was == totals["views"], stats, True)


def latest(one: Position, other: Position) -> Position:
    """The position that includes both."""
    return Position(*map(max, zip(one, other, strict=True)))
