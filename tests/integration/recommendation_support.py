"""A site that recommends, and who has done what there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from domain.upload import Upload
from infra.settings import Settings, load_settings
from projections.catalog import Catalog
from projections.comments import Comments
from projections.dismissals import Dismissals
from projections.likes import Likes
from projections.recommendations.co_occurrence import Engagement, keep
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.recommender import RecommendationInvalidation
from tests.integration.projection_support import hosting, origin
from tests.integration.readapi_support import Site

ALL = "/recommendations"
SECONDS = 4.0
UNSETTLED = 1.5
VIDEO = """
INSERT INTO analytics.videos (video_id, owner, category, completed_at) VALUES (%s, %s, %s, %s)
"""


@dataclass
class Place:
    """A site, and who has done what there."""

    site: Site
    settings: Settings

    def video(self, title: str = "Tides", owner: str = "owner", category: str = "art") -> Upload:
        video = self.site.writer.video(owner, title=title, category=category)
        with self.connected() as conn:
            at = datetime.now(UTC) - timedelta(days=1)
            conn.execute(VIDEO, (video.id, owner, category, at))
        return video

    def watch(self, viewer: str, *videos: Upload) -> None:
        now = datetime.now(UTC) - timedelta(minutes=len(videos))
        told = [
            Engagement(
                viewer, str(each.id), EngagementKind.WATCHED, now + timedelta(minutes=number)
            )
            for number, each in enumerate(videos)
        ]
        with self.connected() as conn, conn.transaction():
            changed = keep(conn, told, Weighing.from_settings(self.settings.recommendations))
        self.site.run(
            RecommendationInvalidation(self.site.rankings, self.settings.recommendations).touch(
                changed
            )
        )

    def ask(self, user: str = "ann", path: str = ALL, **params: Any) -> dict[str, Any]:
        answer = self.site.get(path, user, **params)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.site.database_url, autocommit=True)


def titles(body: dict[str, Any]) -> list[str]:
    return [each["video"]["title"] for each in body["items"]]


def settings_of(**more: str) -> Settings:
    given = {
        "RECOMMENDATIONS_INVALIDATE_SECONDS": str(UNSETTLED),
        "RECOMMENDATIONS_TIMEOUT_SECONDS": str(SECONDS),
        **more,
    }
    return load_settings(given)


def serving(database_url: str, folder: Path, settings: Settings) -> Iterator[Place]:
    site = Site(database_url, folder, settings=settings)
    try:
        with hosting(database_url, Catalog(), Likes(), Comments(), Dismissals()):
            yield Place(site, settings)
    finally:
        site.close()


def change_details(place: Place, video: Upload, title: str, category: str = "art") -> None:
    video.change_details(origin("owner"), title=title, description=None, category=category)
    place.site.writer.save(video)


def kept_items(place: Place) -> dict[str, str]:
    """Titles and reasons of what was kept, once the catalog shows what was written."""
    assert place.site.get("/videos").status_code == 200
    body = place.ask(fresh=False)
    assert body["cached"] is True
    return {each["video"]["title"]: each["reason"] for each in body["items"]}
