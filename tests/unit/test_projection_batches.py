"""How projections fold and group a batch before they touch the database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.model import Aggregate, Origin
from domain.person import Person
from domain.upload import Upload
from domain.video_likes import VideoLikes, stream_id
from engine.log import Recorded
from engine.projection import by_kind, columns
from infra.advisory_locks import copy_lock
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes, sum_up

VIDEOS = [UUID(int=n + 1) for n in range(3)]
VIEWERS = ["alice", "bob", "eve"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def origin(actor: str) -> Origin:
    return Origin(actor, NOW, "correlation", "causation")


def recorded(*aggregates: Aggregate) -> list[Recorded]:
    events: list[Any] = [event for each in aggregates for event in each.collect_events()]
    return [Recorded(position, event) for position, event in enumerate(events, start=1)]


@given(st.lists(st.tuples(st.sampled_from(VIDEOS), st.sampled_from(VIEWERS)), max_size=60))
def test_a_batch_of_toggles_sums_up_to_who_likes_what(toggles: list[tuple[UUID, str]]) -> None:
    streams: dict[tuple[UUID, str], VideoLikes] = {}
    batch = []
    for position, (video, viewer) in enumerate(toggles, start=1):
        likes = streams.setdefault((video, viewer), VideoLikes.blank(stream_id(video, viewer)))
        likes.toggle(video, viewer, origin(viewer))
        batch.append(Recorded(position, likes.collect_events()[0]))  # type: ignore[arg-type]
    changes = sum_up(batch)
    standing = {pair for pair, likes in streams.items() if likes.liked}
    assert changes.standing.keys() == standing
    assert changes.lost == {pair for pair, likes in streams.items() if likes.version > 1}
    for video in VIDEOS:
        assert changes.deltas.get(video, 0) == sum(pair[0] == video for pair in standing)
    lasts = {(video, viewer): at for at, (video, viewer) in enumerate(toggles, start=1)}
    assert all(at == lasts[pair] for pair, at in changes.standing.items())


def test_removed_videos_leave_the_sums() -> None:
    likes = [VideoLikes.blank(uuid4()).like(video, "alice", origin("alice")) for video in VIDEOS]
    changes = sum_up(recorded(*likes))
    assert changes.without([]) is changes
    rest = changes.without(VIDEOS[:2])
    assert rest.deltas == {VIDEOS[2]: 1}
    assert rest.standing == {(VIDEOS[2], "alice"): 3}


def comment_history(edits: int) -> Comment:
    comment = Comment.blank(uuid4())
    comment.post(VIDEOS[0], "first", origin("alice"))
    for number in range(edits):
        comment.edit(f"edit {number}", origin("alice"))
    return comment


@given(st.lists(st.integers(0, 5), max_size=8))
def test_groups_keep_the_order_within_each_stream(edits: list[int]) -> None:
    batch = recorded(*(comment_history(number) for number in edits))
    groups = [group for _, group in by_kind(batch)]
    assert sorted(at for group in groups for at, _ in group) == [at for at, _ in batch]
    flat = [event for group in groups for _, event in group]
    for stream in {event.originator_id for event in flat}:
        versions = [event.originator_version for event in flat if event.originator_id == stream]
        assert versions == sorted(versions)
    for kind, group in by_kind(batch):
        assert {type(event) for _, event in group} == {kind}
        assert len({event.originator_id for _, event in group}) == len(group)


def test_many_streams_of_one_shape_make_few_groups() -> None:
    batch = recorded(*(comment_history(2) for _ in range(100)))
    assert [len(group) for _, group in by_kind(batch)] == [100, 100, 100]


def test_columns_turn_rows_around() -> None:
    assert columns([(1, "a"), (2, "b")]) == ["{1,2}", '{"a","b"}']


def test_a_copy_writes_into_its_own_schema() -> None:
    copy = Likes("likes_next")
    assert (Likes().schema, copy.name, copy.schema) == ("likes", "likes", "likes_next")
    assert copy.sql("SELECT 1 FROM {schema}.counts") == b'SELECT 1 FROM "likes_next".counts'
    assert copy_lock("likes").key != copy_lock("likes_next").key
    assert 0 < copy_lock("likes").key < 2**31


def test_each_projection_wants_what_it_can_write() -> None:
    assert {Upload.Started, Upload.Completed, Upload.Removed} <= set(Catalog.events)
    assert {Comment.Posted, Comment.Deleted, Upload.Removed} <= set(Comments.events)
    assert set(Likes.events) == {
        VideoLikes.Liked,
        VideoLikes.Unliked,
        CommentLikes.Liked,
        CommentLikes.Unliked,
        Upload.VisibilityChanged,
        Upload.Removed,
        Person.Forgotten,
    }
