"""The result of a demo, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One video: its counts are those that the query API gave."""

    video_id: str
    title: str
    source: str
    size_bytes: int
    parts: int
    views: int
    likes: int
    comments: int
    urls: dict[str, str]


@dataclass(frozen=True)
class DemoReport:
    """What happened; `mismatches` is empty when everything read back is what was done."""

    url: str
    viewers: int
    lines: list[Line]
    languages: list[str]
    shares: int
    requests: int
    errors: dict[str, int]
    p50_ms: float
    p99_ms: float
    seconds: float
    mismatches: list[str]

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def totals(self) -> dict[str, int]:
        """Over all videos."""
        return {
            "videos": len(self.lines),
            "views": sum(line.views for line in self.lines),
            "likes": sum(line.likes for line in self.lines),
            "comments": sum(line.comments for line in self.lines),
            "shares": self.shares,
        }

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it; durations in ms, sizes in bytes."""
        return {
            "url": self.url,
            "ok": self.ok,
            "viewers": self.viewers,
            "totals": self.totals(),
            "languages": self.languages,
            "videos": [_camel(asdict(line)) for line in self.lines],
            "requests": self.requests,
            "errors": sum(self.errors.values()),
            "errorKinds": self.errors,
            "latencyMs": {"p50": round(self.p50_ms, 2), "p99": round(self.p99_ms, 2)},
            "seconds": round(self.seconds, 2),
            "mismatches": self.mismatches,
        }

    def sentences(self) -> Iterator[str]:
        """What is told below the table."""
        totals = self.totals()
        yield (
            f"{self.viewers} viewers: {totals['videos']} videos, {totals['views']} views, "
            f"{totals['likes']} likes, {totals['comments']} comments in {len(self.languages)} "
            f"languages, {totals['shares']} shares"
        )
        failed = sum(self.errors.values())
        yield (
            f"{self.requests} requests in {self.seconds:.1f} s, {failed} errors, "
            f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"
        )
        verdict = "everything read back is what was done"
        yield verdict if self.ok else f"{len(self.mismatches)} things differ from what was done"
        yield ""
        yield f"  API        {self.url}/docs"
        for line in self.lines:
            yield f"  {line.title}"
            for name, url in line.urls.items():
                yield f"    {name:<9}{url}"


def _camel(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        head + "".join(word.capitalize() for word in rest): value
        for name, value in fields.items()
        for head, *rest in [name.split("_")]
    }
