"""The client: what a platform does most, each in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, Unpack
from uuid import UUID

import httpx

from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.analytics import get_video_stats
from backlot_client.generated.api.comments import (
    delete_comment,
    edit_comment,
    list_comments,
    post_comment,
)
from backlot_client.generated.api.likes import like_video, unlike_video
from backlot_client.generated.api.uploads import start_upload
from backlot_client.generated.api.videos import get_video, list_liked_videos, list_videos
from backlot_client.generated.models import (
    Comment,
    CommentPage,
    LikeState,
    NewComment,
    UploadCompleted,
    Video,
    VideoPage,
    VideoStats,
    WriteComment,
)
from backlot_client.generated.types import UNSET, Unset
from backlot_client.live import LiveEvent, follow_video
from backlot_client.pages import all_items
from backlot_client.problem import answered
from backlot_client.published import LONGEST_WAIT_SECONDS, PublishedPage, published_pages
from backlot_client.retries import Retries, RetryPolicy
from backlot_client.session import Positions, Session, Token, Tokens
from backlot_client.uploads import Details, OnProgress, Upload, new_upload

ITEMS_AT_ONCE = 100
# A read may wait for 30 seconds until it has what it was asked for.
READ_SECONDS = 60.0
CONNECT_SECONDS = 10.0


class Backlot:
    """Calls Backlot for one caller; threads may share it.

    `token` is a token, or a function that returns one: it is called at first, and again when a
    token is refused. `transport` sends the requests, such as an `httpx.HTTPTransport` with a proxy
    or certificates of one's own. `position` is that of another client whose writes should be seen.
    Every call may raise Problem, or httpx.TransportError where nobody answers.

    Calls that have no method here are made by the generated functions, with `api` as their client:
    tokens, repeats, keys and positions are the same.
    """

    def __init__(
        self,
        url: str,
        token: Token = None,
        *,
        position: str | None = None,
        retries: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._policy = retries or RetryPolicy()
        self._positions = Positions(position)
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        sender = transport or httpx.HTTPTransport()
        session = Session(Retries(sender, self._policy), Tokens(token), self._positions)
        self._http = httpx.Client(base_url=url, transport=session, timeout=timeout)
        # URLs of parts carry their own permission, and may be those of somebody else's server.
        self._parts = httpx.Client(transport=sender, timeout=timeout)
        self.api = AuthenticatedClient(url, token="").set_httpx_client(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._parts.close()

    @property
    def position(self) -> str | None:
        """The position that includes all commands of this client; queries wait for it."""
        return self._positions.position

    @position.setter
    def position(self, position: str | None) -> None:
        self._positions.set(position)

    def like(self, video_id: UUID) -> LikeState:
        """Like a video; again changes nothing."""
        return answered(like_video.sync_detailed(video_id, client=self.api))

    def unlike(self, video_id: UUID) -> LikeState:
        """Take a like back; again changes nothing."""
        return answered(unlike_video.sync_detailed(video_id, client=self.api))

    def comment(
        self,
        video_id: UUID,
        content: str,
        *,
        parent_id: UUID | None = None,
        idempotency_key: str | None = None,
    ) -> Comment:
        """Post a comment, or a reply to the one with `parent_id`.

        It is posted once under one key, whoever sends it again; without one, it gets its own. With
        `status` "held" it waits for approval.
        """
        key = UNSET if idempotency_key is None else idempotency_key
        body = NewComment(content, UNSET if parent_id is None else parent_id)
        return answered(
            post_comment.sync_detailed(video_id, client=self.api, body=body, idempotency_key=key)
        )

    def edit_comment(self, comment_id: UUID, content: str) -> Comment:
        """Replace the text of a comment."""
        body = WriteComment(content)
        return answered(edit_comment.sync_detailed(comment_id, client=self.api, body=body))

    def delete_comment(self, comment_id: UUID, *, reason: str | None = None) -> None:
        """Delete or remove a comment.

        Problem `not-found` may also say that it is done, and the first answer was lost.
        """
        why = UNSET if reason is None else reason
        answered(delete_comment.sync_detailed(comment_id, client=self.api, reason=why))

    def video(self, video_id: UUID) -> Video:
        """Return a video with its counts."""
        video: Video = answered(get_video.sync_detailed(video_id, client=self.api))
        return video

    def stats(self, video_id: UUID) -> VideoStats:
        """Return what happened on a video, with all that this client did."""
        stats: VideoStats = answered(get_video_stats.sync_detailed(video_id, client=self.api))
        return stats

    def videos(
        self,
        *,
        owner: str | None = None,
        category: str | None = None,
        page_size: int = ITEMS_AT_ONCE,
    ) -> Iterator[Video]:
        """Return videos, newest first."""

        def page(cursor: str | Unset) -> VideoPage:
            found: VideoPage = answered(
                list_videos.sync_detailed(
                    client=self.api,
                    cursor=cursor,
                    limit=page_size,
                    owner=owner or UNSET,
                    category=category or UNSET,
                )
            )
            return found

        return all_items(page)

    def liked_videos(self, *, page_size: int = ITEMS_AT_ONCE) -> Iterator[Video]:
        """Return what the caller likes, the newest like first."""

        def page(cursor: str | Unset) -> VideoPage:
            found: VideoPage = answered(
                list_liked_videos.sync_detailed(client=self.api, cursor=cursor, limit=page_size)
            )
            return found

        return all_items(page)

    def comments(
        self, video_id: UUID, *, lang: str | None = None, page_size: int = ITEMS_AT_ONCE
    ) -> Iterator[Comment]:
        """Return comments, newest first, with translations into a language."""

        def page(cursor: str | Unset) -> CommentPage:
            found: CommentPage = answered(
                list_comments.sync_detailed(
                    video_id, client=self.api, cursor=cursor, limit=page_size, lang=lang or UNSET
                )
            )
            return found

        return all_items(page)

    def follow(self, video_id: UUID, *, after: str | None = None) -> Iterator[LiveEvent]:
        """Return what happens around a video, until it is removed.

        `after` is the `id` of the last event that is known, or a position: what happened to
        comments since then comes first. Close the iterator to leave earlier.
        """
        return follow_video(self._http, self._policy, video_id, after)

    def published(
        self,
        *,
        after: str | None = None,
        topics: Sequence[str] = (),
        limit: int = 1000,
        wait: int = LONGEST_WAIT_SECONDS,
    ) -> Iterator[PublishedPage]:
        """Return what is published behind a position, for the role `service`.

        It waits for more for ever; with `wait` 0 it ends where there is no more.
        """
        return published_pages(self.api, after, topics, limit, wait)

    def start_upload(
        self,
        path: Path,
        title: str,
        *,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        **details: Unpack[Details],
    ) -> Upload:
        """Begin an upload; without a content type, it is guessed by the name of the file."""
        body = new_upload(path, title, content_type, details)
        key = UNSET if idempotency_key is None else idempotency_key
        begun = answered(
            start_upload.sync_detailed(client=self.api, body=body, idempotency_key=key)
        )
        return self.resume_upload(path, begun.upload_id)

    def resume_upload(self, path: Path, upload_id: UUID) -> Upload:
        """Return an upload that was begun before, to run it again."""
        return Upload(self.api, self._parts, self._policy, path, upload_id)

    def upload(
        self,
        path: Path,
        title: str,
        *,
        content_type: str | None = None,
        parallel: int = 4,
        on_progress: OnProgress | None = None,
        **details: Unpack[Details],
    ) -> UploadCompleted:
        """Upload a file; see `start_upload` for one that may be interrupted."""
        begun = self.start_upload(path, title, content_type=content_type, **details)
        return begun.run(parallel=parallel, on_progress=on_progress)
