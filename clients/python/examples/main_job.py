"""What a platform does with a film, by the generated client: upload, like, comment, read.

    BACKLOT_URL=http://127.0.0.1:8000 BACKLOT_TOKEN=… .venv/bin/python -m examples.main_job film.mp4

Prints what was read, as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import httpx
from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.analytics import get_video_stats
from backlot_client.generated.api.comments import list_comments, post_comment
from backlot_client.generated.api.likes import like_video
from backlot_client.generated.api.uploads import complete_upload, get_upload, start_upload
from backlot_client.generated.api.videos import get_video
from backlot_client.generated.models import NewComment, ProblemDetails, StartUpload

T = TypeVar("T")


class Refused(Exception):
    """A call was not answered as it should be."""


def answered(answer: T | ProblemDetails | None) -> T:
    """Return the answer of a call; raise Refused for a problem."""
    if answer is None or isinstance(answer, ProblemDetails):
        raise Refused(answer)
    return answer


def upload(client: AuthenticatedClient, film: bytes) -> UUID:
    """Upload a film in parts; return the id of the video."""
    details = StartUpload("Rain", "rain.mp4", "video/mp4", len(film))
    begun = answered(start_upload.sync(client=client, body=details, idempotency_key=str(uuid4())))
    for part in begun.parts:
        first = (part.number - 1) * begun.part_size_bytes
        piece = film[first : first + begun.part_size_bytes]
        httpx.put(part.url, content=piece).raise_for_status()
    # Without a body: of all parts that have arrived.
    answered(complete_upload.sync(begun.upload_id, client=client))
    found = answered(get_upload.sync(begun.upload_id, client=client))
    if found.status != "completed":
        raise Refused(found.status)
    return begun.video_id


def main(film: Path) -> None:
    """Do all of it, with the URL and the token of the environment."""
    client = AuthenticatedClient(os.environ["BACKLOT_URL"], os.environ["BACKLOT_TOKEN"])
    with client:
        video_id = upload(client, film.read_bytes())
        liked = answered(like_video.sync(video_id, client=client))
        body = NewComment("Nice rain")
        posted = post_comment.sync_detailed(video_id, client=client, body=body)
        video = answered(get_video.sync(video_id, client=client))
        comments = answered(list_comments.sync(video_id, client=client))
        # Stats are counted a moment later: this asks for those that have what was done above.
        position = posted.headers["Backlot-Position"]
        stats = get_video_stats.sync(
            video_id,
            client=client,
            backlot_min_position=position,
            backlot_timeout_ms=30_000,
        )
        # What no client expects of an unknown video is typed, too.
        problem = get_video.sync(uuid4(), client=client)
    told = {
        "status": video.status,
        "hasLiked": liked.has_liked,
        "likes": video.likes,
        "comments": [comment.content for comment in comments.items],
        "likesInStats": answered(stats).totals.likes,
        "problem": problem.type_ if isinstance(problem, ProblemDetails) else None,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
