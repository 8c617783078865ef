"""Who may call what: one line per route, which tests hold against the routes and walk as everybody.

To add a route, add a line: the call with its path as the route has it, who may, and what they are
answered where that is not 200. `body`, `query` and `headers` make the call a sensible one. In the
path, names in braces are filled in: see `Things` in `tests/e2e/test_routes.py`, to which a route
with a name of its own adds a thing that belongs to Ann.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class As(StrEnum):
    """Who calls: nobody with a token, the user whose things they are, another one, and roles."""

    NONE = "none"
    USER = "user"
    OTHER = "other user"
    AUDITOR = "auditor"
    MODERATOR = "moderator"
    SERVICE = "service"
    ADMIN = "admin"


ANYBODY = frozenset(As)
TOKEN = ANYBODY - {As.NONE}
OWNER = frozenset({As.USER})
OWNER_OR_ADMIN = OWNER | {As.ADMIN}
AUDITORS = frozenset({As.AUDITOR, As.ADMIN})
MODERATORS = frozenset({As.MODERATOR, As.ADMIN})
SERVICES = frozenset({As.SERVICE, As.ADMIN})
ADMIN = frozenset({As.ADMIN})
NOBODY: frozenset[As] = frozenset()
"""A token does not help: only a signed URL does."""


@dataclass(frozen=True)
class Line:
    """A route, who may call it, and what the others are answered.

    Without a token that is 401, unless `unknown` says otherwise; with one, `refused`. `spends` says
    that a call of somebody who may uses the thing up. `may` of another line of the same route, as
    settings have it, is not told here: the walk is of a program with default settings. `names` are
    other things than those that the names in the path stand for elsewhere.
    """

    call: str
    may: frozenset[As]
    answer: int = 200
    refused: int = 403
    unknown: int = 401
    spends: bool = False
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def expected(self, caller: As) -> int:
        """The status that this caller gets."""
        if caller in self.may:
            return self.answer
        return self.unknown if caller is As.NONE else self.refused


UPLOAD = {
    "title": "Rain", "filename": "rain.mp4", "contentType": "video/mp4", "sizeBytes": 10,
}  # fmt: skip
TUS = {"Tus-Resumable": "1.0.0"}
TUS_BEGUN = TUS | {"Upload-Length": "10", "Upload-Metadata": "filetype dmlkZW8vbXA0"}
# None of them: the call changes nothing.
TUS_BYTES = TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
THERE = "{video_id}"
LISTED = "{listed_id}"
# A name of which a resolver says at once that it is nobody's (RFC 2606).
WEBHOOK = {"url": "https://hooks.invalid/backlot", "topics": ["user.forgotten"]}
REASON = {"reason": "the walk"}
NOBODY_HERE = {"user_id": "nobody-ever"}
OF_ANN = {"userId": "ann"}
FAR = {"number": "999999999"}  # No seal has it.
NO_COMMENT = {"comment_id": "00000000-0000-4000-8000-000000000001"}
UNKNOWN_NAME = 404  # Whoever may operate is told that there is no such projection.

ROUTES: tuple[Line, ...] = (
    # Likes.
    Line("POST /videos/{video_id}/like", TOKEN),
    Line("PUT /videos/{video_id}/like", TOKEN),
    Line("DELETE /videos/{video_id}/like", TOKEN),
    Line("GET /videos/{video_id}/like", ANYBODY),
    Line("GET /videos/{video_id}/events", ANYBODY),
    Line("POST /videos/{video_id}/events/ticket", TOKEN),
    Line("GET /videos/liked", TOKEN),
    # Comments.
    Line("POST /videos/{video_id}/comments", TOKEN, 201, body={"content": "Nice rain"}),
    Line("GET /videos/{video_id}/comments", ANYBODY),
    Line("GET /comments/{comment_id}", ANYBODY),
    Line("GET /comments/{comment_id}/replies", ANYBODY),
    Line("PUT /comments/{comment_id}/like", TOKEN),
    Line("DELETE /comments/{comment_id}/like", TOKEN),
    Line("GET /comments/{comment_id}/like", ANYBODY),
    Line("PATCH /comments/{comment_id}", OWNER, body={"content": "Nicer rain"}),
    Line("DELETE /comments/{comment_id}", OWNER | MODERATORS, spends=True),
    # Moderation.
    # The video's owner may too, but Ann wrote this comment herself (tests/e2e/test_moderation.py).
    Line("POST /comments/{comment_id}/restore", MODERATORS),
    Line("POST /comments/{comment_id}/approve", MODERATORS),
    Line("POST /comments/{comment_id}/report", TOKEN, 202, body={"reason": "spam"}),
    Line("POST /videos/{video_id}/report", TOKEN, 202, body={"reason": "spam"}),
    Line("GET /moderation/reports", MODERATORS),
    Line("POST /moderation/reports/{report_id}", MODERATORS, 404, body={"decision": "dismiss"}),
    Line("GET /moderation/held", TOKEN),
    Line("GET /users/me/blocked", TOKEN),
    Line("PUT /users/me/blocked/{user_id}", TOKEN),
    Line("DELETE /users/me/blocked/{user_id}", TOKEN),
    # Uploads and videos.
    Line("POST /uploads", TOKEN, 201, body=UPLOAD),
    Line("GET /uploads/{upload_id}", OWNER_OR_ADMIN),
    Line("POST /uploads/{upload_id}/part-urls", OWNER, body={"numbers": [1]}),
    # Nothing has arrived that could be completed.
    Line("POST /uploads/{upload_id}/complete", OWNER, 422),
    Line("DELETE /uploads/{upload_id}", OWNER, spends=True),
    # Their ends as S3 has them: nothing has arrived here either.
    Line("GET /uploads/{upload_id}/s3", OWNER_OR_ADMIN),
    Line("POST /uploads/{upload_id}/s3", OWNER, 422),
    Line("DELETE /uploads/{upload_id}/s3", OWNER, 204, spends=True),
    # The same by tus.
    Line("OPTIONS /tus/uploads", ANYBODY, 204),
    Line("POST /tus/uploads", TOKEN, 201, headers=TUS_BEGUN),
    Line("GET /tus/uploads/{upload_id}", OWNER, headers=TUS),
    Line("PATCH /tus/uploads/{upload_id}", OWNER, 204, headers=TUS_BYTES),
    Line("DELETE /tus/uploads/{upload_id}", OWNER, 204, spends=True, headers=TUS),
    Line("GET /videos", ANYBODY),
    Line("GET /videos/{video_id}", ANYBODY),
    Line("PATCH /videos/{video_id}", OWNER_OR_ADMIN, body={"title": "More rain"}),
    Line("DELETE /videos/{video_id}", OWNER_OR_ADMIN, spends=True),
    Line("PUT /objects/{key:path}", NOBODY, unknown=403),
    Line("GET /objects/{key:path}", NOBODY, unknown=403),
    # Watching.
    Line("POST /videos/{video_id}/watch", TOKEN),
    Line(
        "POST /videos/{video_id}/watch-time",
        TOKEN,
        202,
        body={"sessionId": "9b1f6f4e-0d57-4d0f-8a3c-52a7f5d1c0ab", "seconds": 3, "position": 60},
    ),
    Line("POST /videos/{video_id}/share", TOKEN, 202),
    # Analytics and recommendations.
    Line("GET /videos/{video_id}/stats", OWNER | MODERATORS | AUDITORS),
    Line("GET /videos/{video_id}/stats/channels", OWNER | MODERATORS | AUDITORS),
    Line("GET /videos/{video_id}/stats/retention", OWNER | MODERATORS | AUDITORS),
    Line("GET /users/{user_id}/stats", OWNER | MODERATORS | AUDITORS, names={"user_id": "ann"}),
    Line("GET /analytics/trending", ANYBODY),
    Line("GET /analytics/trending/why", AUDITORS, query={"likes": "50"}),
    Line("GET /analytics/recommendations", ADMIN),
    Line("GET /recommendations", OWNER_OR_ADMIN, query={"userId": "ann"}),
    Line("GET /videos/recommendations", OWNER_OR_ADMIN, query={"userId": "ann"}),
    Line("GET /recommendations/why", ADMIN, query=OF_ANN),
    # A list names its user in a signature: to everybody else there is none.
    Line("POST /recommendations/{list_id}/shown", OWNER, 202, 404, body={"videoIds": [LISTED]}),
    Line("POST /recommendations/{list_id}/chosen", OWNER, 202, 404, body={"videoId": LISTED}),
    Line("POST /recommendations/not-interested", TOKEN, 202, body={"videoId": THERE}),
    Line("PUT /videos/{video_id}/not-interested", TOKEN),
    Line("DELETE /videos/{video_id}/not-interested", TOKEN),
    # Operators.
    Line("GET /projections", ADMIN),
    Line("GET /projections/{name}", ADMIN, UNKNOWN_NAME),
    Line("GET /projections/{name}/completeness", ADMIN, UNKNOWN_NAME),
    Line("GET /projections/{name}/estimate", ADMIN, UNKNOWN_NAME),
    Line("GET /projections/{name}/differences", ADMIN, UNKNOWN_NAME),
    Line("GET /projections/{name}/parked", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/replay", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/verify", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/completeness", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/pause", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/resume", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/cancel", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/confirm", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/rollback", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/drop-old", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/drop-look", ADMIN, UNKNOWN_NAME, body={"position": 1}),
    Line("POST /projections/{name}/park", ADMIN, UNKNOWN_NAME, body=REASON),
    Line("POST /projections/{name}/retry", ADMIN, UNKNOWN_NAME),
    Line("POST /projections/{name}/discard", ADMIN, UNKNOWN_NAME, body=REASON | {"position": 1}),
    Line("GET /operations/{operation_id}", ADMIN, 404),
    Line("GET /admin/overview", AUDITORS),
    Line("GET /admin/operations", AUDITORS),
    Line("GET /admin/spending", AUDITORS),
    Line("GET /admin/parked", ADMIN),
    # What became of a decision about what never failed, its operation tells.
    Line("GET /admin/dead-letters", AUDITORS),
    Line("POST /admin/dead-letters/retry", ADMIN, 202, body={"ids": [1]}),
    Line("POST /admin/dead-letters/discard", ADMIN, 202, body=REASON | {"ids": [1]}),
    Line("POST /admin/dead-letters/{letter_id}/retry", ADMIN, 202),
    Line("POST /admin/dead-letters/{letter_id}/discard", ADMIN, 202, body=REASON),
    Line("GET /admin/tasks", AUDITORS),
    Line("GET /admin/tasks/failed", AUDITORS),
    Line("POST /admin/tasks/failed/{task_id}/retry", ADMIN, 202),
    Line("POST /admin/tasks/failed/{task_id}/discard", ADMIN, 202, body=REASON),
    Line("GET /admin/translations/failed", MODERATORS),
    Line("POST /admin/translations/{comment_id}/retry", MODERATORS, 404, names=NO_COMMENT),
    Line("POST /admin/revocations", ADMIN, 201, body=REASON | {"jti": "of no token"}),
    Line("GET /admin/revocations", ADMIN),
    Line("DELETE /admin/revocations/{revocation_id}", ADMIN, 404),
    Line("POST /admin/webhooks", ADMIN, 201, body=WEBHOOK),
    Line("GET /admin/webhooks", ADMIN),
    Line("GET /admin/webhooks/{webhook_id}", ADMIN, 404),
    Line("PATCH /admin/webhooks/{webhook_id}", ADMIN, 404, body={"enabled": False}),
    Line("DELETE /admin/webhooks/{webhook_id}", ADMIN, 404),
    Line("GET /admin/webhooks/{webhook_id}/secret", ADMIN, 404),
    Line("POST /admin/webhooks/{webhook_id}/secret", ADMIN, 404),
    Line("POST /admin/webhooks/{webhook_id}/test", ADMIN, 404),
    Line("GET /admin/webhooks/{webhook_id}/deliveries", ADMIN, 404),
    Line("POST /admin/webhooks/{webhook_id}/deliveries/{delivery_id}/repeat", ADMIN, 404),
    Line("POST /admin/webhooks/{webhook_id}/deliveries/{delivery_id}/skip", ADMIN, 404),
    # Who calls.
    Line("GET /users/me", TOKEN),
    # Personal data. A setting lets users export their own, and be forgotten
    # (tests/e2e/test_privacy.py, tests/e2e/test_erasure.py).
    Line("GET /users/me/export", NOBODY),
    Line("GET /users/{user_id}/export", ADMIN),
    Line("GET /users/{user_id}/pseudonym", ADMIN),
    Line("DELETE /users/me", NOBODY),
    Line("DELETE /users/{user_id}", ADMIN, 404, names=NOBODY_HERE),
    Line("GET /users/{user_id}/certificate", ADMIN),
    Line("GET /users/{user_id}/forgetting", ADMIN, 404, names=NOBODY_HERE),
    # Services.
    Line("GET /events", SERVICES),
    # The audit.
    Line("GET /audit/events", AUDITORS),
    Line("GET /audit/events/{position}", AUDITORS),
    Line("GET /audit/streams/{stream_id}", AUDITORS),
    Line("GET /audit/trace/{correlation_id}", AUDITORS, 404),
    Line("GET /audit/stats", AUDITORS),
    Line("GET /audit/verify", ADMIN),
    Line("GET /audit/seals", AUDITORS),
    Line("GET /audit/seals/{number}/proof", ADMIN, 404, query={"position": "1"}, names=FAR),
    Line("GET /audit/anchors", AUDITORS),
    # The process itself. A proxy keeps these inside (deploy/nginx.conf), and so does ADMIN_PORT the
    # metrics.
    Line("GET /healthz", ANYBODY),
    Line("GET /readyz", ANYBODY),
    Line("GET /metrics", ANYBODY),
    Line("GET /openapi.json", ANYBODY),
    Line("GET /docs", ANYBODY),
    Line("GET /docs/static", ANYBODY, 307),
)
