"""How many like each video and each comment, and what each viewer likes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, LiteralString, NamedTuple
from uuid import UUID

import orjson
from psycopg import AsyncConnection, Cursor
from psycopg.rows import TupleRow

from domain.comment_likes import CommentLikes
from domain.person import Person
from domain.upload import Upload, VideoViewer, Visibility, is_visible
from domain.video_likes import VideoLikes
from engine.checkpoints import position_of
from engine.log import topics_of
from engine.lookups import MOST_EVENTS, Tally
from engine.personal_data import Deleted, PersonalTable
from engine.projection import Batch, Projection, columns
from infra.postgres.connection import column, fetch_as

# `likes` holds a row per standing like, `counts` their number per video; the video ids of
# `removed` get no rows any more, since a like may be recorded just after its video's removal. Those
# of `private` keep theirs, but no counter that tells anybody who asks.
FIRST_TABLES: LiteralString = """
CREATE TABLE {schema}.likes (
    video_id uuid NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (video_id, viewer));
CREATE INDEX likes_by_viewer ON {schema}.likes (viewer, position);
CREATE TABLE {schema}.counts (video_id uuid PRIMARY KEY, likes bigint NOT NULL)
    WITH (fillfactor = 50);
CREATE TABLE {schema}.removed (video_id uuid PRIMARY KEY);
CREATE TABLE {schema}.private (video_id uuid PRIMARY KEY)
"""
# As those of videos: a row per standing like, and their number per comment.
ADD_COMMENT_LIKES: LiteralString = """
CREATE TABLE {schema}.comment_likes (
    comment_id uuid NOT NULL,
    viewer text COLLATE "C" NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (comment_id, viewer));
CREATE INDEX comment_likes_by_viewer ON {schema}.comment_likes (viewer, position);
CREATE TABLE {schema}.comment_counts (
    comment_id uuid PRIMARY KEY,
    video_id uuid NOT NULL,
    likes bigint NOT NULL)
    WITH (fillfactor = 50);
CREATE INDEX comment_counts_by_video ON {schema}.comment_counts (video_id)
"""
TABLES: LiteralString = f"{FIRST_TABLES};{ADD_COMMENT_LIKES}"
PERSONAL = (
    PersonalTable(
        name="likes.likes",
        holds="likes that stand",
        kept="follows the event log",
        table="{schema}.likes",
        projection="likes",
        columns=("viewer",),
        # Their number stays: it is added up by the events, and never counted from the rows.
        forget=Deleted(),
    ),
    PersonalTable(
        name="likes.comment_likes",
        holds="likes of comments that stand",
        kept="follows the event log",
        table="{schema}.comment_likes",
        projection="likes",
        columns=("viewer",),
        # Their number stays, as that of likes of videos does.
        forget=Deleted(),
    ),
)
# Before there was a visibility, every video was public.
ADD_PRIVATE: LiteralString = "CREATE TABLE {schema}.private (video_id uuid PRIMARY KEY)"

# A like stands until it is taken back, so none of these has a row: no need to say ON CONFLICT,
# which costs a third more.
ADD_LIKES: LiteralString = """
INSERT INTO {schema}.likes (video_id, viewer, position)
SELECT * FROM unnest(%b::uuid[], %b::text[], %b::bigint[])
"""
DROP_LIKES: LiteralString = """
DELETE FROM {schema}.likes l USING unnest(%b::uuid[], %b::text[]) AS gone(video_id, viewer)
WHERE l.video_id = gone.video_id AND l.viewer = gone.viewer
"""
# In the order of the keys, and last: replays add to the same counts side by side.
ADD_DELTAS: LiteralString = """
INSERT INTO {schema}.counts AS c (video_id, likes)
SELECT * FROM unnest(%b::uuid[], %b::bigint[]) AS e(video_id, likes) ORDER BY video_id
ON CONFLICT (video_id) DO UPDATE SET likes = c.likes + excluded.likes
"""
FIND_REMOVED: LiteralString = (
    "SELECT video_id FROM {schema}.removed WHERE video_id = ANY (%b::uuid[])"
)
REMOVE: LiteralString = """
WITH videos AS (SELECT unnest(%b::uuid[]) AS id),
     gone AS (INSERT INTO {schema}.removed SELECT id FROM videos ON CONFLICT DO NOTHING),
     counted AS (DELETE FROM {schema}.counts USING videos WHERE video_id = id)
DELETE FROM {schema}.likes USING videos WHERE video_id = id
"""
HIDE: LiteralString = """
INSERT INTO {schema}.private SELECT unnest(%b::uuid[]) ON CONFLICT DO NOTHING
"""
SHOW: LiteralString = "DELETE FROM {schema}.private WHERE video_id = ANY (%b::uuid[])"

ADD_LIKES_OF_COMMENTS: LiteralString = """
INSERT INTO {schema}.comment_likes (comment_id, viewer, position)
SELECT * FROM unnest(%b::uuid[], %b::text[], %b::bigint[])
"""
DROP_LIKES_OF_COMMENTS: LiteralString = """
DELETE FROM {schema}.comment_likes l
USING unnest(%b::uuid[], %b::text[]) AS gone(comment_id, viewer)
WHERE l.comment_id = gone.comment_id AND l.viewer = gone.viewer
"""
# In the order of the keys, and last, as those of videos.
ADD_COMMENT_DELTAS: LiteralString = """
INSERT INTO {schema}.comment_counts AS c (comment_id, video_id, likes)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::bigint[]) AS e(comment_id, video_id, likes)
ORDER BY comment_id
ON CONFLICT (comment_id) DO UPDATE SET likes = c.likes + excluded.likes
"""
REMOVE_LIKES_OF_COMMENTS: LiteralString = """
WITH counted AS (
    DELETE FROM {schema}.comment_counts WHERE video_id = ANY (%b::uuid[]) RETURNING comment_id)
DELETE FROM {schema}.comment_likes USING counted
WHERE comment_likes.comment_id = counted.comment_id
"""

# Subqueries by key for each video, whatever the planner thinks of the tables' sizes.
SUMS: LiteralString = """
SELECT coalesce((SELECT likes FROM {schema}.counts c WHERE c.video_id = v.id),
                (SELECT likes FROM {schema}.comment_counts c WHERE c.comment_id = v.id), 0)
FROM unnest(%s::uuid[]) WITH ORDINALITY AS v(id, place) ORDER BY place
"""
# One statement sees one moment: whoever likes the video is among those that are counted.
OF_VIDEO: LiteralString = """
SELECT coalesce(c.likes, 0) AS likes, l.video_id IS NOT NULL AS liked, s.position, u.owner,
       u.visibility,
       EXISTS (SELECT FROM {schema}.private p WHERE p.video_id = u.upload_id) AS private
FROM catalog.uploads u
JOIN backlot_checkpoints s ON s.kind = 'projection' AND s.subscription = %s
LEFT JOIN {schema}.counts c ON c.video_id = u.upload_id
LEFT JOIN {schema}.likes l ON l.video_id = u.upload_id AND l.viewer = %s
WHERE u.upload_id = %s AND u.completed_position IS NOT NULL
  AND NOT EXISTS (SELECT FROM {schema}.removed r WHERE r.video_id = u.upload_id)
"""
COUNTS: LiteralString = "SELECT video_id, likes FROM {schema}.counts WHERE video_id = ANY (%s)"
LIKED: LiteralString = """
SELECT video_id FROM {schema}.likes WHERE video_id = ANY (%s) AND viewer = %s
"""
LIKED_COMMENTS: LiteralString = """
SELECT comment_id FROM {schema}.comment_likes WHERE comment_id = ANY (%s) AND viewer = %s
"""
LIKED_PAGE: LiteralString = """
SELECT video_id, position FROM {schema}.likes WHERE viewer = %s AND position < %s
ORDER BY position DESC LIMIT %s
"""

CommentLike = tuple[int, CommentLikes.Liked | CommentLikes.Unliked]


@dataclass(slots=True)
class Changes:
    """What a batch comes to: per video the sum, per viewer and video where it ended."""

    deltas: dict[UUID, int] = field(default_factory=dict)
    # Positions of the likes that stand at the end of the batch and did not before it.
    standing: dict[tuple[UUID, str], int] = field(default_factory=dict)
    # Likes that were taken back, though they may have been given again.
    lost: set[tuple[UUID, str]] = field(default_factory=set)
    removed: set[UUID] = field(default_factory=set)
    # Whether a video ended as a private one.
    private: dict[UUID, bool] = field(default_factory=dict)
    comments: list[CommentLike] = field(default_factory=list)

    @property
    def liked(self) -> Collection[UUID]:
        """The videos of which something is liked, or no longer."""
        if not self.comments:
            return self.deltas
        return {*self.deltas, *(event.video_id for _, event in self.comments)}

    def without(self, videos: Collection[UUID]) -> Changes:
        """Return the changes without those of these videos."""
        if not videos:
            return self
        return Changes(
            {video: delta for video, delta in self.deltas.items() if video not in videos},
            {pair: at for pair, at in self.standing.items() if pair[0] not in videos},
            {pair for pair in self.lost if pair[0] not in videos},
            self.removed,
            self.private,
            [each for each in self.comments if each[1].video_id not in videos],
        )


def sum_up(batch: Batch) -> Changes:
    """Fold a batch. A stream alternates likes and unlikes, so that their sum is exact."""
    changes = Changes()
    deltas, standing, lost = changes.deltas, changes.standing, changes.lost
    for position, event in batch:
        if isinstance(event, VideoLikes.Liked):
            deltas[event.video_id] = deltas.get(event.video_id, 0) + 1
            standing[event.video_id, event.viewer] = position
        elif isinstance(event, VideoLikes.Unliked):
            deltas[event.video_id] = deltas.get(event.video_id, 0) - 1
            pair = event.video_id, event.viewer
            standing.pop(pair, None)
            lost.add(pair)
        elif isinstance(event, CommentLikes.Liked | CommentLikes.Unliked):
            changes.comments.append((position, event))
        elif isinstance(event, Upload.VisibilityChanged):
            changes.private[event.originator_id] = event.visibility == Visibility.PRIVATE
        else:
            changes.removed.add(event.originator_id)
    return changes


def video_of(state: bytes) -> UUID:
    """Return the video of a stored like or unlike, of which it takes no more to tell whose it is.

    Raise KeyError, TypeError and ValueError for what is none.
    """
    return UUID(orjson.loads(state)["video_id"])


def liked_number(state: bytes) -> int:
    """Return the video, or the comment, of a stored like or unlike, as a number, which is made in a
    quarter of the time."""
    fields = orjson.loads(state)
    return int((fields.get("comment_id") or fields["video_id"]).replace("-", ""), 16)


class LikedVideo(NamedTuple):
    """A like that stands, and the position at which it was given."""

    video_id: UUID
    position: int


class LikesOfVideo(NamedTuple):
    """How many like a video, whether one viewer does, and the position in the log of both.

    `private` is what the likes know at that position, `visibility` what the catalog knows.
    """

    likes: int
    liked: bool
    position: int
    owner: str
    visibility: str
    private: bool

    def visible_to(self, viewer: VideoViewer) -> bool:
        """Return whether there is such a video, for this viewer."""
        return is_visible(self.visibility, self.owner, viewer)


class Likes(Projection):
    """How many like each video and each comment, and what each viewer likes."""

    name = "likes"
    version = 3
    # What may change a count, or whether it is told.
    counted = (VideoLikes.Liked, VideoLikes.Unliked, Upload.VisibilityChanged, Upload.Removed)
    events = (*counted, CommentLikes.Liked, CommentLikes.Unliked, Person.Forgotten)
    tables: ClassVar[LiteralString] = TABLES
    additions: ClassVar[Mapping[int, LiteralString]] = {2: ADD_PRIVATE, 3: ADD_COMMENT_LIKES}
    by_stream = True
    absorbing = (Upload.Removed, Person.Forgotten)
    personal = PERSONAL

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        changes = sum_up(batch)
        cursor.execute(self.sql(FIND_REMOVED), (list(changes.liked),))
        gone = changes.removed.union(video for (video,) in cursor.fetchall())
        self._write(changes.without(gone), cursor)
        if changes.removed:
            cursor.execute(self.sql(REMOVE), (list(changes.removed),))
            cursor.execute(self.sql(REMOVE_LIKES_OF_COMMENTS), (list(changes.removed),))
        for statement, private in ((HIDE, True), (SHOW, False)):
            if videos := [each for each, hidden in changes.private.items() if hidden is private]:
                cursor.execute(self.sql(statement), (videos,))

    def _write(self, changes: Changes, cursor: Cursor[TupleRow]) -> None:
        if changes.lost:
            cursor.execute(self.sql(DROP_LIKES), columns(changes.lost))
        if changes.standing:
            pairs = columns(changes.standing)
            cursor.execute(self.sql(ADD_LIKES), [*pairs, column([*changes.standing.values()])])
        if changes.deltas:
            # Zeros too: which rows there are must not depend on where the batches were cut.
            cursor.execute(self.sql(ADD_DELTAS), columns(changes.deltas.items()))
        if changes.comments:
            self._write_comments(changes.comments, cursor)

    def _write_comments(self, changes: Sequence[CommentLike], cursor: Cursor[TupleRow]) -> None:
        deltas: dict[tuple[UUID, UUID], int] = {}
        standing: dict[tuple[UUID, str], int] = {}
        lost: set[tuple[UUID, str]] = set()
        for position, event in changes:
            comment, pair = (event.comment_id, event.video_id), (event.comment_id, event.viewer)
            if isinstance(event, CommentLikes.Liked):
                deltas[comment] = deltas.get(comment, 0) + 1
                standing[pair] = position
            else:
                deltas[comment] = deltas.get(comment, 0) - 1
                standing.pop(pair, None)
                lost.add(pair)
        if lost:
            cursor.execute(self.sql(DROP_LIKES_OF_COMMENTS), columns(lost))
        if standing:
            rows = ((*pair, at) for pair, at in standing.items())
            cursor.execute(self.sql(ADD_LIKES_OF_COMMENTS), columns(rows))
        if deltas:
            sums = ((*comment, delta) for comment, delta in deltas.items())
            cursor.execute(self.sql(ADD_COMMENT_DELTAS), columns(sums))

    def tally(self, most: int = MOST_EVENTS) -> Tally:
        """Return what knows, for commands, how many like each thing at the end of the log.

        It remembers `most` likes that this copy has not taken in yet.
        """
        kinds = (
            *((VideoLikes.Liked, 1), (VideoLikes.Unliked, -1)),
            *((CommentLikes.Liked, 1), (CommentLikes.Unliked, -1)),
        )
        return Tally(
            reached=position_of(self.schema),
            sums=self.sql(SUMS),
            changes={topic: change for kind, change in kinds for topic in topics_of(kind)},
            key_of=liked_number,
            most=most,
        )

    async def of_video(
        self, conn: AsyncConnection[TupleRow], video_id: UUID, viewer: str | None
    ) -> LikesOfVideo | None:
        """Return the likes of a video, whoever may see that; None where there is none."""
        given = (self.schema, viewer, video_id)
        found = await fetch_as(conn, LikesOfVideo, self.sql(OF_VIDEO), given)
        return found[0] if found else None

    async def counts(
        self, conn: AsyncConnection[TupleRow], videos: Sequence[UUID]
    ) -> dict[UUID, int]:
        """Return the number of likes of each of these videos that has or had any."""
        rows = await conn.execute(self.sql(COUNTS), (list(videos),))
        return dict(await rows.fetchall())

    async def liked(
        self, conn: AsyncConnection[TupleRow], viewer: str, videos: Sequence[UUID]
    ) -> set[UUID]:
        """Return which of these videos the viewer likes."""
        rows = await conn.execute(self.sql(LIKED), (list(videos), viewer))
        return {video for (video,) in await rows.fetchall()}

    async def liked_comments(
        self, conn: AsyncConnection[TupleRow], viewer: str, comments: Sequence[UUID]
    ) -> set[UUID]:
        """Return which of these comments the viewer likes."""
        rows = await conn.execute(self.sql(LIKED_COMMENTS), (list(comments), viewer))
        return {comment for (comment,) in await rows.fetchall()}

    async def liked_page(
        self, conn: AsyncConnection[TupleRow], viewer: str, before: int, limit: int
    ) -> list[LikedVideo]:
        """Return the viewer's likes given before a position, newest first."""
        return await fetch_as(conn, LikedVideo, self.sql(LIKED_PAGE), (viewer, before, limit))
