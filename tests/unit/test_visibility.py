"""Who may see a video, and which lists show it: decided in one place, for commands and reads."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest

from commands.upload_queries import FindVisible
from domain.errors import Conflict, NotAllowed, NotFound
from domain.upload import NOBODY, Status, Upload, VideoViewer, Visibility, is_listed, is_visible
from engine.command_bus import Aggregates, Slot
from infra.http.auth import Identity
from projections.catalog import VideoRow
from tests.unit.given_when_then import STREAM, Fact, by, fact, given
from tests.unit.test_upload import ABORTED, COMPLETED, DETAILS, REMOVED, STARTED

ANN, BOB = by("ann"), by("bob")
OWNER, OTHER, MODERATOR = VideoViewer("ann"), VideoViewer("bob"), VideoViewer("mod", sees_all=True)
PUBLIC, UNLISTED, PRIVATE = Visibility
BOB_SEES = {PUBLIC: True, UNLISTED: True, PRIVATE: False}


def shown(visibility: Visibility) -> Fact:
    return fact(Upload.VisibilityChanged, ANN, owner="ann", visibility=visibility.value)


def completed(visibility: Visibility) -> Fact:
    fields = {"size_bytes": DETAILS["size_bytes"], "etag": '"e"', "visibility": visibility.value}
    return fact(Upload.Completed, ANN, owner="ann", **fields)


def show(visibility: Visibility) -> Callable[[Upload], None]:
    return lambda upload: upload.change_visibility(visibility, ANN)


@pytest.mark.parametrize("viewer", [OWNER, MODERATOR])
@pytest.mark.parametrize("visibility", Visibility)
def test_owners_and_moderators_see_every_video(visibility: Visibility, viewer: VideoViewer) -> None:
    assert is_visible(visibility, "ann", viewer)


@pytest.mark.parametrize("viewer", [OTHER, NOBODY, VideoViewer("")])
@pytest.mark.parametrize("visibility", Visibility)
def test_everybody_else_sees_what_is_not_private(
    visibility: Visibility, viewer: VideoViewer
) -> None:
    assert is_visible(visibility, "ann", viewer) is BOB_SEES[visibility]


@pytest.mark.parametrize("viewer", [OWNER, OTHER, NOBODY, MODERATOR])
@pytest.mark.parametrize("visibility", Visibility)
def test_lists_show_what_is_public_and_to_owners_their_own(
    visibility: Visibility, viewer: VideoViewer
) -> None:
    assert is_listed(visibility, "ann", viewer) is (visibility is PUBLIC or viewer == OWNER)


@pytest.mark.parametrize("viewer", [OWNER, OTHER, NOBODY, MODERATOR])
@pytest.mark.parametrize("visibility", Visibility)
def test_the_read_model_and_the_aggregate_decide_alike(
    visibility: Visibility, viewer: VideoViewer
) -> None:
    upload = given(Upload, STARTED, shown(visibility), COMPLETED).load()
    at = datetime(2026, 11, 22, tzinfo=UTC)
    row = VideoRow(
        STREAM, "ann", Status.COMPLETED, "Rain", None, None, at, 1, None, None, visibility
    )
    assert row.visible_to(viewer) is upload.visible_to(viewer)
    assert row.is_public is (visibility is PUBLIC)
    assert row.listed_for(viewer) is is_listed(visibility, "ann", viewer)


@pytest.mark.parametrize(
    ("roles", "anonymous", "viewer"),
    [
        ([], False, VideoViewer("ann")),
        (["auditor", "service"], False, VideoViewer("ann")),
        (["moderator"], False, VideoViewer("ann", sees_all=True)),
        (["admin"], False, VideoViewer("ann", sees_all=True)),
        ([], True, NOBODY),
    ],
)
def test_a_caller_sees_as_its_roles_say(
    roles: list[str], anonymous: bool, viewer: VideoViewer
) -> None:
    assert Identity("ann", frozenset(roles), anonymous).viewer == viewer


class TestUpload:
    @pytest.mark.parametrize("visibility", [UNLISTED, PRIVATE])
    def test_begins_with_what_its_owner_says(self, visibility: Visibility) -> None:
        begun = given(Upload).when(lambda u: u.start(ANN, **DETAILS, visibility=visibility))
        begun.then(STARTED, shown(visibility))

    def test_is_public_unless_its_owner_says_otherwise(self) -> None:
        begun = given(Upload).when(lambda u: u.start(ANN, **DETAILS)).then(STARTED)
        assert begun.visibility is PUBLIC

    @pytest.mark.parametrize("visibility", Visibility)
    def test_tells_with_its_completion_who_may_see_it(self, visibility: Visibility) -> None:
        history = (STARTED, shown(visibility))
        done = given(Upload, *history).when(lambda u: u.complete(DETAILS["size_bytes"], '"e"', ANN))
        done.then(completed(visibility))

    @pytest.mark.parametrize("visibility", [UNLISTED, PRIVATE])
    def test_changes(self, visibility: Visibility) -> None:
        changed = given(Upload, STARTED, COMPLETED).when(show(visibility)).then(shown(visibility))
        assert changed.visibility is visibility

    def test_the_present_visibility_again_records_nothing(self) -> None:
        given(Upload, STARTED, COMPLETED).when(show(PUBLIC)).then()
        given(Upload, STARTED, COMPLETED, shown(PRIVATE)).when(show(PRIVATE)).then()

    @pytest.mark.parametrize(
        "history",
        [(), (STARTED,), (STARTED, ABORTED), (STARTED, COMPLETED, REMOVED)],
        ids=["unknown", "started", "aborted", "removed"],
    )
    def test_what_is_no_video_has_none(self, history: tuple[Fact, ...]) -> None:
        given(Upload, *history).when(show(PRIVATE)).refused(NotFound, "no such video")

    @pytest.mark.parametrize("viewer", [OWNER, MODERATOR])
    def test_is_there_for_who_may_see_it(self, viewer: VideoViewer) -> None:
        private = given(Upload, STARTED, shown(PRIVATE), COMPLETED)
        private.when(lambda upload: upload.require_visible(viewer)).then()

    @pytest.mark.parametrize("viewer", [OTHER, NOBODY])
    def test_to_all_others_it_is_as_if_it_was_not(self, viewer: VideoViewer) -> None:
        for history in ((), (STARTED, shown(PRIVATE), COMPLETED), (STARTED,)):
            asked = given(Upload, *history).when(lambda upload: upload.require_visible(viewer))
            asked.refused(NotFound, "^There is no such video.$")

    def test_of_another_is_not_theirs_and_a_private_one_is_not_there(self) -> None:
        def wanted(upload: Upload) -> None:
            upload.require_own_upload("bob")

        given(Upload, STARTED).when(wanted).refused(NotAllowed, "another user")
        for history in ((), (STARTED, shown(PRIVATE))):
            given(Upload, *history).when(wanted).refused(NotFound, "^There is no such upload.$")

    def test_a_private_upload_has_an_end_like_any_other(self) -> None:
        private = given(Upload, STARTED, shown(PRIVATE), ABORTED)
        ended = private.when(lambda upload: upload.complete(1, '"e"', ANN))
        ended.refused(Conflict, "aborted", uploadStatus=Status.ABORTED)


def test_of_several_videos_those_are_found_that_the_viewer_may_see() -> None:
    ids = [UUID(int=number) for number in range(1, 4)]
    slots = {}
    for video, visibility in zip(ids, Visibility, strict=True):
        upload = Upload.blank(video)
        upload.start(ANN, **DETAILS, visibility=visibility)
        slots[video] = Slot(upload)
    assert FindVisible(ids, OTHER).decide(Aggregates(slots), BOB) == ids[:2]
    assert FindVisible(ids, OWNER).decide(Aggregates(slots), ANN) == ids
    with pytest.raises(NotFound, match="no such video"):
        FindVisible(ids[2:], OTHER).decide(Aggregates(slots), BOB)
