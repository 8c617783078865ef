"""What acts of the site have in common: where they lead, and what they answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from web.api import ApiProblem, path
from web.visits import MODERATORS, Form, Visit

OF_VIDEO = "/watch/{video_id:uuid}"
REASONS = {
    "spam": "Spam or advertising",
    "harassment": "Harassment",
    "hate": "Hate",
    "violence": "Violence",
    "sexual": "Sexual content",
    "dangerous": "Dangerous acts",
    "misinformation": "Misinformation",
    "rights": "Infringes rights",
    "other": "Something else",
}


class Told(dict[str, Any]):
    """What the API told of a thing: a member that was left out is None."""

    def __missing__(self, name: str) -> None:
        return None


def whole(answer: Any) -> Any:
    """Return JSON of the API for a template, which asks for members that may be left out."""
    if isinstance(answer, dict):
        return Told({name: whole(value) for name, value in answer.items()})
    return [whole(each) for each in answer] if isinstance(answer, list) else answer


def in_api(visit: Visit, below: str = "") -> str:
    """Return the path of the page's video in the API, or of something below it."""
    return path("/videos/{}", visit.asked("video_id")) + below


def told(visit: Visit, text: str, answer: Any) -> Response:
    """Return the API's answer to a script; send a form's browser back, and tell what was done."""
    if visit.is_fragment:
        return JSONResponse(answer)
    return visit.leave(path("/watch/{}", visit.asked("video_id")), text)


def decides(visit: Visit, video: Mapping[str, Any]) -> bool:
    """Return whether the visitor may remove what others say about a video."""
    session = visit.session
    return session is not None and (video["ownerId"] == session.user_id or visit.may(MODERATORS))


def is_on(form: Form) -> bool:
    """Return whether a form sets something, rather than takes it back."""
    return form.get("on", "1") == "1"


def number(form: Form, name: str) -> float:
    """Return a number of a form; raise ApiProblem."""
    try:
        found = float(form.get(name, ""))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        detail = f"`{name}` has to be a number."
        raise ApiProblem(422, {"type": "invalid", "title": "Invalid", "detail": detail})
    return found


def complaint(form: Form) -> dict[str, str]:
    """Return a report of somebody as the API takes it."""
    detail = form.get("detail", "").strip()
    return {"reason": form.get("reason", "")} | ({"detail": detail} if detail else {})
