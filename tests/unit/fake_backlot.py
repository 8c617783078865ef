"""A Backlot in memory, as far as the demo calls it, that can be told to lie."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import jwt

PART_BYTES = 20_000
URL = "http://backlot.test"


@dataclass
class FakeVideo:
    """What one video has gathered."""

    size: int
    parts: dict[int, bytes] = field(default_factory=dict)
    views: int = 0
    likers: set[str] = field(default_factory=set)
    comments: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeBacklot:
    """`lies` change what is read; the first `outages` POSTs are answered with 503."""

    lies: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    outages: int = 0
    ready: bool = True
    secret: str = "signs the tokens of these tests only"
    videos: dict[str, FakeVideo] = field(default_factory=dict)
    keys: Counter[str] = field(default_factory=Counter)

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/readyz":
            parts = {"database": {"ok": self.ready}}
            return httpx.Response(200 if self.ready else 503, json={"parts": parts})
        if (key := request.headers.get("Idempotency-Key")) is not None:
            self.keys[key] += 1
        if self.outages > 0 and request.method == "POST":
            self.outages -= 1
            return httpx.Response(503, json={"detail": "away"}, headers={"Retry-After": "0"})
        if path.startswith("/objects/"):
            return self._object(request)
        try:
            user = self._user(request)
        except jwt.PyJWTError:
            return httpx.Response(401, json={"detail": "refused"})
        for pattern, handler in self._routes().items():
            method, _, shape = pattern.partition(" ")
            found = re.fullmatch(shape, path)
            if found and method == request.method:
                body = json.loads(request.content) if request.content else {}
                answer = handler(user, body, *found.groups())
                lie = self.lies.get(pattern, lambda said: said)
                return httpx.Response(200, json=lie(answer), headers={"Backlot-Position": "p"})
        return httpx.Response(404, json={"detail": f"{request.method} {path}"})

    def _user(self, request: httpx.Request) -> str:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        return str(jwt.decode(token, self.secret, ["HS256"])["sub"])

    def _routes(self) -> dict[str, Callable[..., Any]]:
        one = "([0-9a-f-]{36})"
        return {
            "POST /uploads": self._start,
            f"POST /uploads/{one}/part-urls": self._part_urls,
            f"POST /uploads/{one}/complete": self._complete,
            "GET /videos/liked": self._liked,
            f"GET /videos/{one}": self._video,
            f"PATCH /videos/{one}": self._video,
            f"POST /videos/{one}/watch": self._watch,
            f"POST /videos/{one}/watch-time": lambda *_: {"status": "accepted"},
            f"POST /videos/{one}/share": lambda *_: {"status": "accepted"},
            f"GET /videos/{one}/like": self._like_state,
            f"POST /videos/{one}/like": self._toggle,
            f"PUT /videos/{one}/like": self._like,
            f"DELETE /videos/{one}/like": self._unlike,
            f"GET /videos/{one}/comments": self._comments,
            f"POST /videos/{one}/comments": self._comment,
            f"PATCH /comments/{one}": self._edit,
            f"DELETE /comments/{one}": self._delete,
        }

    def _start(self, user: str, body: dict[str, Any]) -> Any:
        video = str(uuid4())
        self.videos[video] = FakeVideo(body["sizeBytes"])
        count = -(-body["sizeBytes"] // PART_BYTES)
        first = self._part_urls(user, {"numbers": [1]}, video)["parts"]
        sizes = {"partSizeBytes": PART_BYTES, "partCount": count}
        return {"uploadId": video, "videoId": video, "status": "started", "parts": first, **sizes}

    def _part_urls(self, user: str, body: dict[str, Any], video: str) -> Any:
        return {
            "parts": [
                {
                    "number": number,
                    "url": f"{URL}/objects/{video}?partNumber={number}",
                    "expiresAt": "2100-01-01T00:00:00Z",
                }
                for number in body["numbers"]
            ]
        }

    def _complete(self, user: str, body: dict[str, Any], video: str) -> Any:
        whole = b"".join(piece for _, piece in sorted(self.videos[video].parts.items()))
        assert len(whole) == self.videos[video].size
        assert [part["number"] for part in body["parts"]] == sorted(self.videos[video].parts)
        ids = {"uploadId": video, "videoId": video}
        return {**ids, "status": "completed", "sizeBytes": len(whole), "etag": "etag"}

    def _object(self, request: httpx.Request) -> httpx.Response:
        video = self.videos[request.url.path.removeprefix("/objects/")]
        if request.method == "PUT":
            video.parts[int(request.url.params["partNumber"])] = request.content
            return httpx.Response(200, headers={"ETag": '"etag"'})
        whole = b"".join(piece for _, piece in sorted(video.parts.items()))
        last = int(request.headers["Range"].rpartition("-")[2])
        lie = self.lies.get("bytes", lambda said: said)
        return httpx.Response(206, content=lie(whole[: last + 1]))

    def _liked(self, user: str, body: Any) -> Any:
        return {"items": [{"videoId": v} for v, kept in self.videos.items() if user in kept.likers]}

    def _video(self, user: str, body: Any, video: str) -> Any:
        kept = self.videos[video]
        counts = {"likes": len(kept.likers), "comments": len(kept.comments)}
        return {"views": kept.views, **counts}

    def _watch(self, user: str, body: Any, video: str) -> Any:
        self.videos[video].views += 1
        return {"url": f"{URL}/objects/{video}", "sessionId": str(uuid4())}

    def _like_state(self, user: str, body: Any, video: str) -> Any:
        likers = self.videos[video].likers
        return {"hasLiked": user in likers, "likesCount": len(likers)}

    def _like(self, user: str, body: Any, video: str) -> Any:
        self.videos[video].likers.add(user)
        return self._like_state(user, body, video)

    def _unlike(self, user: str, body: Any, video: str) -> Any:
        self.videos[video].likers.discard(user)
        return self._like_state(user, body, video)

    def _toggle(self, user: str, body: Any, video: str) -> Any:
        self.videos[video].likers ^= {user}
        return self._like_state(user, body, video)

    def _comments(self, user: str, body: Any, video: str) -> Any:
        kept = self.videos[video].comments
        return {"items": [{"commentId": name, "content": text} for name, text in kept.items()]}

    def _comment(self, user: str, body: dict[str, Any], video: str) -> Any:
        comment = str(uuid4())
        self.videos[video].comments[comment] = body["content"]
        return {"commentId": comment}

    def _edit(self, user: str, body: dict[str, Any], comment: str) -> Any:
        for kept in self.videos.values():
            if comment in kept.comments:
                kept.comments[comment] = body["content"]
        return {"commentId": comment}

    def _delete(self, user: str, body: Any, comment: str) -> Any:
        for kept in self.videos.values():
            kept.comments.pop(comment, None)
        return {"commentId": comment}
