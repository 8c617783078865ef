"""From a viewer's deed to the stats and the ranking, in the started program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.support import eventually

SOON = {"ANALYTICS_FLUSH_SECONDS": "0.2", "TRENDING_INVALIDATE_SECONDS": "0.2"}


def ranked(client: httpx.Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = read(client.get("/analytics/trending?timeRange=all"))["items"]
    return items


def test_what_viewers_do_is_ranked_and_told(make_program: Callable[..., Program]) -> None:
    program = make_program(**SOON).start()
    owner, bob = program.client("owner"), program.client("bob")
    watched, liked = upload(owner), upload(owner)
    assert ranked(bob) == []
    for viewer in (bob, program.client("eve"), bob):
        assert viewer.post(f"/videos/{watched}/watch").is_success
    assert owner.post(f"/videos/{watched}/watch").is_success
    see(bob, bob.put(f"/videos/{liked}/like"))
    eventually(lambda: len(ranked(bob)) == 2)
    eventually(lambda: _stats(owner, watched)["views"] == 3)
    eventually(lambda: [item["video"]["videoId"] for item in ranked(bob)] == [liked, watched])
    first, second = ranked(bob)
    assert (first["components"]["likes"], second["components"]["views"]) == (5, 2)
    assert first["video"]["hasLiked"] is True
    assert _stats(owner, watched)["uniqueViewers"] == 3
    assert _stats(owner, liked)["likes"] == 1
    assert program.stop() == 0
    assert "trending_not_settled" not in program.complained


def _stats(client: httpx.Client, video: str) -> dict[str, Any]:
    totals: dict[str, Any] = read(client.get(f"/videos/{video}/stats?timeRange=24h"))["totals"]
    return totals
