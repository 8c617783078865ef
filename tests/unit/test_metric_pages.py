"""The pages of several processes as one: what is added, what is not, what stays of the dead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infra import metric_pages
from infra.metric_pages import Pages, PageUnavailable, add_up, ask_page, pages_at, socket_at


def page(likes: int, waiting: int, started: float, *seconds: float, kind: str = "a") -> str:
    registry = CollectorRegistry()
    Counter("likes", "Likes.", ["kind"], registry=registry).labels(kind).inc(likes)
    Gauge("waiting", "Who waits.", registry=registry).set(waiting)
    Gauge("process_start_time_seconds", "Since when.", registry=registry).set(started)
    times = Histogram("took_seconds", "Time.", buckets=(0.5, 2.0), registry=registry)
    for each in seconds:
        times.observe(each)
    return generate_latest(registry).decode()


def samples(text: str | bytes) -> dict[str, float]:
    """By name and labels, but for when each was made."""
    told = text if isinstance(text, str) else text.decode()
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


ONE, ANOTHER = page(3, 1, 20.0, 0.1, 1.0), page(4, 2, 10.0, 3.0, kind="b")
BOTH = {
    "likes_total,a": 3,
    "likes_total,b": 4,
    "waiting": 3,
    "process_start_time_seconds": 10.0,
    "took_seconds_bucket,0.5": 1,
    "took_seconds_bucket,2.0": 2,
    "took_seconds_bucket,+Inf": 3,
    "took_seconds_count": 3,
    "took_seconds_sum": pytest.approx(4.1),
}


def test_numbers_are_added_up_and_times_are_the_earliest() -> None:
    assert samples(add_up([ONE, ANOTHER])) == BOTH


def test_the_sum_of_one_page_is_that_page() -> None:
    assert add_up([ONE]) == ONE
    assert "# HELP likes_total Likes.\n# TYPE likes_total counter\n" in ONE


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the process that gathers."""
    monkeypatch.setattr(metric_pages, "render", lambda: b"")


async def told(page: str) -> bytes:
    return page.encode()


@pytest.mark.usefixtures("own")
def test_what_a_process_counted_outlives_it(short_dir: Path) -> None:
    async def gather() -> list[dict[str, float]]:
        pages = Pages()
        found = []
        pages.expect(1)
        pages.expect(2)
        async with pages_at(socket_at(short_dir, 2), lambda: told(ANOTHER)):
            async with pages_at(socket_at(short_dir, 1), lambda: told(ONE)):
                found.append(samples(await pages.whole(short_dir)))
            # It does not answer any more, and nobody knows yet that it has ended.
            found.append(samples(await pages.whole(short_dir)))
            pages.depart(1)
            found.append(samples(await pages.whole(short_dir)))
            # The one in its place counts from nothing.
            pages.expect(3)
            async with pages_at(socket_at(short_dir, 3), lambda: told(page(1, 7, 30.0))):
                found.append(samples(await pages.whole(short_dir)))
        return found

    whole, silent, departed, replaced = asyncio.run(gather())
    assert whole == silent == BOTH
    # Who waited there waits no more.
    assert departed == BOTH | {"waiting": 2}
    assert replaced == BOTH | {"waiting": 9, "likes_total,a": 4}


@pytest.mark.usefixtures("own")
def test_a_page_that_comes_after_its_process_has_ended_counts_once(short_dir: Path) -> None:
    async def gather() -> dict[str, float]:
        pages = Pages()
        pages.expect(1)

        async def late() -> bytes:
            pages.depart(1)
            return ONE.encode()

        async with pages_at(socket_at(short_dir, 1), lambda: told(ONE)):
            await pages.whole(short_dir)
        async with pages_at(socket_at(short_dir, 1), late):
            return samples(await pages.whole(short_dir))

    found = asyncio.run(gather())
    assert found["likes_total,a"] == 3
    assert "waiting" not in found


def test_nobody_who_adds_up_is_an_error_of_its_own(short_dir: Path) -> None:
    with pytest.raises(PageUnavailable):
        asyncio.run(ask_page(short_dir / "nobody.sock"))
