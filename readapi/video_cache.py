"""Videos as they are shown, and what viewers like, in the memory of one process.

A video is read from the read models with one statement, and kept as JSON until an event changes it:
the tail of the log tells which one, and at which position. A like or a view is added where it is
known what the entry includes; anything else drops the entry. So an entry is right at the position
of the tail, and no answer is older than what was acknowledged to anybody before it was asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple, cast
from uuid import UUID

from domain.comment import Comment
from domain.dismissals import Dismissal
from domain.model import Aggregate
from domain.operation import Operation
from domain.person import Person
from domain.upload import CommentPolicy, Upload, VideoViewer, is_visible
from domain.video_likes import VideoLikes
from engine.checkpoints import Pool
from engine.log import topics_of
from engine.tail import LastSeen, Listings, LogTail, Lru, TailEvent, TailTelemetry
from engine.telemetry import VIEWED
from infra.batcher import BatchLoader
from infra.http.responses import names_of
from infra.http.shapes import Position, Video
from infra.postgres.connection import column
from infra.pseudonyms import Pseudonyms
from projections.catalog import Catalog, VideoRow
from projections.comments import Comments
from projections.likes import Likes
from projections.recommendations.model import DescribedVideo
from projections.trending import Ranking
from readapi.video_lists import VideoLists
from readapi.viewer_cache import (
    MOST_CHANGES,
    NOTHING,
    LikedCache,
    OfferCache,
    likes_of_viewers,
)

if TYPE_CHECKING:
    from readapi.analytics import CachedStats

MOST_VIDEOS = 20_000
MOST_RANKINGS = 500
# Most videos take 3 KB of them.
MOST_STATS_BYTES = 48 * 2**20
# So many videos are read with one statement: each of them keeps the event loop busy.
MOST_AT_ONCE = 250
TELEMETRY = "telemetry"
"""Stands among the schemas of read models for what is counted where it is recorded."""

OF_EVERYTHING: tuple[type[Aggregate.Event], ...] = (*Person.events(), Operation.Finished)
"""Who is forgotten may be named anywhere; and an operator may have changed what is read behind the
log's back: a parked event is applied late."""

LISTING = frozenset(
    topic
    for event in (
        *(Upload.Completed, Upload.Removed, Upload.VisibilityChanged),
        *(Upload.DetailsChanged, Upload.Disowned),
    )
    for topic in topics_of(event)
)
"""The topics of what changes which videos stand in a list, or in which order."""
VISIBILITY = frozenset(
    topic
    for event in (Upload.Removed, Upload.VisibilityChanged, Upload.Disowned)
    for topic in topics_of(event)
)
"""The topics of what changes who may see a video."""

COMPLETED = frozenset(topics_of(Upload.Completed))

# One statement sees one moment: what is shown of a video, and how far each part of it is.
VIDEOS: LiteralString = """
SELECT at.*, shown.*
FROM (SELECT (SELECT position FROM backlot_checkpoints
              WHERE kind = 'projection' AND subscription = %(catalog)s),
             (SELECT position FROM backlot_checkpoints
              WHERE kind = 'projection' AND subscription = %(likes)s),
             (SELECT position FROM backlot_checkpoints
              WHERE kind = 'projection' AND subscription = %(comments)s),
             (SELECT coalesce(max(seq), 0) FROM public.backlot_telemetry))
     AS at (catalog, likes, comments, telemetry)
LEFT JOIN (
    SELECT u.upload_id, u.owner, u.status, u.title, u.description, u.category, u.completed_at,
           u.completed_position, u.duration_seconds, u.spoken_language, u.visibility,
           coalesce(l.likes, 0),
           coalesce(c.comments, 0) - coalesce((
               SELECT sum(replies) FROM comments.tallies t
               WHERE t.video_id = u.upload_id AND t.position IS NULL AND t.replies > 0), 0)::bigint,
           coalesce(v.views, 0), p.policy
    FROM catalog.uploads u
    LEFT JOIN likes.counts l ON l.video_id = u.upload_id
    LEFT JOIN comments.counts c ON c.video_id = u.upload_id
    LEFT JOIN comments.policies p ON p.video_id = u.upload_id
    LEFT JOIN public.backlot_views v ON v.video_id = u.upload_id
    WHERE u.upload_id = ANY (%(ids)b::uuid[]) AND u.completed_position IS NOT NULL) AS shown ON true
"""


@dataclass(slots=True, eq=False)
class CachedVideo:
    """A video as everybody sees it who may see it, and up to where its parts are."""

    row: VideoRow
    owner_name: str | None
    policy: CommentPolicy
    likes: int
    comments: int
    views: int
    # How far in the log catalog, likes and comments are, and in the telemetry the views.
    catalog_at: int
    likes_at: int
    comments_at: int
    views_at: int
    json: bytes | None = field(default=None)
    _described: DescribedVideo | None = field(default=None, init=False)

    def visible_to(self, viewer: VideoViewer) -> bool:
        """Return whether there is such a video, for this viewer."""
        return is_visible(self.row.visibility, self.row.owner, viewer)

    @property
    def described(self) -> DescribedVideo | None:
        """Title and category, None where it is not public."""
        row = self.row
        if self._described is None and row.is_public:
            self._described = DescribedVideo(row.video_id, row.title, None, row.category)
        return self._described

    def told(self, liked: bool | None) -> bytes:
        """Return the video as JSON, with whether the caller likes it where that is known."""
        if self.json is None:
            self.json = self._encoded()
        if liked is None:
            return self.json
        return self.json[:-1] + (b',"hasLiked":true}' if liked else b',"hasLiked":false}')

    def alone(self, liked: bool | None) -> bytes:
        """Return the same where one video is asked for: with who may comment on it."""
        told = self.told(liked)
        if self.policy is CommentPolicy.OPEN:
            return told
        return told[:-1] + b',"commentPolicy":"%b"}' % self.policy.encode()

    def _encoded(self) -> bytes:
        video = Video(
            **self.row._asdict(),
            owner_id=self.row.owner,
            created_at=self.row.completed_at,
            likes=self.likes,
            comments=self.comments,
            views=self.views,
        )
        return video.to_json({} if self.owner_name is None else {self.row.owner: self.owner_name})


class LoadedVideo(NamedTuple):
    """A video, if there is one; up to where read models that lack something of it have to come.

    By schema; nothing where the video is right at the position of the tail.
    """

    video: CachedVideo | None
    behind: Mapping[str, int] = NOTHING


class VideoCache:
    """The videos that were shown last; a follower of the log. To be used from one event loop."""

    def __init__(
        self,
        pool: Pool,
        tail: LogTail,
        persons: Pseudonyms,
        likes: Likes,
        *,
        ranking_seconds: float = 1.0,
        offer_seconds: float = 10.0,
    ) -> None:
        """`pool` leads to the read models.

        Rankings are asked for again after so many seconds, and Redis whether recommendations are
        still the same.
        """
        self._pool = pool
        self._tail = tail
        self._persons = persons
        self._videos: Lru[UUID, CachedVideo] = Lru(MOST_VIDEOS, "video")
        self.liked = LikedCache(
            pool, "viewer", likes_of_viewers("likes.likes", "video_id"), likes.liked
        )
        self._catalog, self._likes = LastSeen(MOST_CHANGES), LastSeen(MOST_CHANGES)
        self._comments, self._views = LastSeen(MOST_CHANGES), LastSeen(MOST_CHANGES)
        self._telemetry = LastSeen(MOST_CHANGES)
        self._loader: BatchLoader[UUID, LoadedVideo] = BatchLoader(self._read, MOST_AT_ONCE)
        self.changes = 0
        """Another number whenever more than the counts of a video changed."""
        self.lists = VideoLists()
        self.rankings: Listings[Ranking] = Listings("ranking", MOST_RANKINGS, ranking_seconds)
        self.stats: Lru[Hashable, CachedStats] = Lru(
            MOST_STATS_BYTES, "stats", lambda each: each.size
        )
        self.offers = OfferCache(tail, offer_seconds)
        self._handlers = self._by_topic()
        # Another number whenever everything was dropped: what was read before is not kept.
        self._epoch = 0
        tail.follow(self)

    def __contains__(self, video_id: UUID) -> bool:
        return self._videos.peek(video_id) is not None

    def changed_at(self, video_id: UUID) -> int:
        """Return a position behind which no likes of a video, and nothing of itself, changed."""
        return max(self._likes.get(video_id), self._catalog.get(video_id))

    def counted_at(self, video_id: UUID) -> Position:
        """Return a position behind which nothing happened around a video."""
        events = (changes.get(video_id) for changes in (self._catalog, self._likes, self._comments))
        return Position(max(events), self._telemetry.get(video_id))

    def begin(self, position: Position) -> None:
        self._epoch += 1
        self._videos.clear()
        self.liked.begin(position.events)
        self.stats.clear()
        for changes in (self._catalog, self._likes, self._comments):
            changes.begin(position.events)
        self._views.begin(position.telemetry)
        self._telemetry.begin(position.telemetry)
        self._clear_listings(None)
        self.offers.clear()
        self.changes += 1

    def take(self, event: TailEvent) -> None:
        handle = self._handlers.get(event.topic)
        if handle is not None:
            handle(event)

    def take_telemetry(self, event: TailTelemetry) -> None:
        self._telemetry.put(event.video_id, event.position)
        if event.topic != VIEWED:
            return
        if event.person is not None:
            self.offers.leave_out(event.person, event.video_id)
        self._views.put(event.video_id, event.position)
        video = self._videos.peek(event.video_id)
        if video is not None and event.position > video.views_at:
            video.views, video.views_at, video.json = video.views + 1, event.position, None

    def _by_topic(self) -> Mapping[str, Callable[[TailEvent], None]]:
        handlers: dict[str, Callable[[TailEvent], None]] = {}
        for events, handle in (
            ((VideoLikes.Liked,), self._liked),
            ((VideoLikes.Unliked,), self._unliked),
            ((Dismissal.Dismissed,), self._dismissed),
            ((Dismissal.TakenBack,), self._dismissal_taken_back),
            (Upload.events(), self._changed),
            (Comment.events(), self._commented),
            (OF_EVERYTHING, self._everything),
        ):
            for event in events:
                handlers |= dict.fromkeys(topics_of(event), handle)
        handlers |= dict.fromkeys(topics_of(Upload.CommentPolicyChanged), self._policy_changed)
        handlers |= dict.fromkeys(topics_of(Upload.Removed), self._removed)
        return handlers

    def _liked(self, event: TailEvent) -> None:
        self.liked.liked(event.fields["viewer"], self._add_like(event, 1), event.position)

    def _unliked(self, event: TailEvent) -> None:
        self.liked.unliked(event.fields["viewer"], self._add_like(event, -1), event.position)

    def _add_like(self, event: TailEvent, delta: int) -> UUID:
        video_id = UUID(event.fields["video_id"])
        self.offers.leave_out(event.fields["viewer"], video_id)
        self._likes.put(video_id, event.position)
        video = self._videos.peek(video_id)
        if video is not None and event.position > video.likes_at:
            video.likes, video.likes_at, video.json = video.likes + delta, event.position, None
        return video_id

    def _changed(self, event: TailEvent) -> None:
        self._catalog.put(event.stream_id, event.position)
        if event.topic in LISTING:
            video = self._videos.peek(event.stream_id)
            place = None if video is None else video.row.completed_position
            self._clear_listings(event.position if event.topic in COMPLETED else place)
            self.offers.catalog_changed(visibility=event.topic in VISIBILITY)
        self._videos.drop(event.stream_id)
        self.changes += 1

    def _clear_listings(self, place: int | None) -> None:
        """Forget what a video may change that stands there in all lists, if that is known."""
        if place is None:
            self.lists.clear()
        else:
            self.lists.change(place)
        self.rankings.clear()

    def _policy_changed(self, event: TailEvent) -> None:
        self._comments.put(event.stream_id, event.position)
        self._changed(event)

    def _removed(self, event: TailEvent) -> None:
        self._changed(event)
        self.liked.removed(event.stream_id)

    def _commented(self, event: TailEvent) -> None:
        video_id = UUID(event.fields["video_id"])
        self._comments.put(video_id, event.position)
        video = self._videos.peek(video_id)
        if video is not None and event.position > video.comments_at:
            self._videos.drop(video_id)

    def _dismissed(self, event: TailEvent) -> None:
        self.offers.leave_out(event.fields["viewer"], UUID(event.fields["video_id"]))

    def _dismissal_taken_back(self, event: TailEvent) -> None:
        self.offers.drop(event.fields["viewer"])

    def _everything(self, event: TailEvent) -> None:
        self.begin(Position(event.position, self._tail.position.telemetry))

    async def videos(self, ids: Sequence[UUID]) -> Sequence[LoadedVideo | CachedVideo]:
        """Return these videos in their order: as they are in memory, or from the read models.

        Raise what the database raises when it is away.
        """
        cached = self._videos.get_all(ids)
        loads = [
            self._loader.load(each) if video is None else None
            for each, video in zip(ids, cached, strict=True)
        ]
        return [
            await asyncio.shield(load) if load is not None else cast("CachedVideo", video)
            for video, load in zip(cached, loads, strict=True)
        ]

    async def found(self, ids: Sequence[UUID]) -> dict[UUID, LoadedVideo]:
        """Return the same by id, with what they lack."""
        videos = zip(ids, await self.videos(ids), strict=True)
        return {
            each: video if isinstance(video, LoadedVideo) else LoadedVideo(video)
            for each, video in videos
        }

    async def described(self, ids: Sequence[UUID]) -> dict[UUID, DescribedVideo]:
        """Return title and category of those that are public; raise as `videos` does."""
        found = {}
        for video_id, each in zip(ids, await self.videos(ids), strict=True):
            video = each.video if isinstance(each, LoadedVideo) else each
            if video is not None and (described := video.described) is not None:
                found[video_id] = described
        return found

    async def _read(self, ids: Sequence[UUID]) -> dict[UUID, LoadedVideo]:
        """Return the videos as the read models have them, and keep those that lack nothing."""
        epoch = self._epoch
        copies = {"catalog": Catalog.name, "likes": Likes.name, "comments": Comments.name}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(VIDEOS.encode(), {"ids": column(ids), **copies}, prepare=True)
            rows = await cursor.fetchall()
        at = [each or 0 for each in rows[0][:4]]
        shown = {row[4]: row[4:] for row in rows if row[4] is not None}
        names = await names_of(self._persons, {row[1] for row in shown.values()})
        found = {}
        for each in ids:
            found[each] = self._found(each, shown.get(each), at, names)
            video, behind = found[each]
            if video is not None and not behind and epoch == self._epoch:
                self._videos.put(each, video)
        return found

    def _found(
        self,
        video_id: UUID,
        row: Sequence[Any] | None,
        at: Sequence[int],
        names: Mapping[str, str],
    ) -> LoadedVideo:
        parts = (
            (Catalog.name, self._catalog, at[0]),
            (Likes.name, self._likes, at[1]),
            (Comments.name, self._comments, at[2]),
        )
        behind = {
            schema: changed
            for schema, changes, reached in parts
            if (changed := changes.get(video_id)) > reached
        }
        if row is None:
            # Of a video that is not there, nothing else matters.
            return LoadedVideo(None, behind if Catalog.name in behind else NOTHING)
        *columns, likes, comments, views, policy = row
        shown = VideoRow(*columns)
        name = names.get(shown.owner)
        who_comments = CommentPolicy(policy) if policy else CommentPolicy.OPEN
        counts = (likes, comments, views)
        video = CachedVideo(shown, name, who_comments, *counts, at[0], at[1], at[2], at[3])
        # Views are counted where they are recorded: these are as far as the statement saw.
        views_seen = self._views.get(video_id)
        if views_seen > video.views_at:
            behind[TELEMETRY] = views_seen
        return LoadedVideo(video, behind)
