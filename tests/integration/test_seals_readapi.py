"""`GET /audit/verify`: the newest result, and a new one where it is old or everything is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from engine.seals.anchors import FileAnchors
from engine.seals.proofs import Proofs, configured_proofs
from infra.settings import load_settings
from readapi.audit.routes import Integrity
from tests.integration.readapi_support import Site
from tests.integration.seal_support import TOPICS, anchored, change, make_log, new_key, seal_all

ALTER = "UPDATE backlot_events SET state = 'x' WHERE notification_id = 7"


CLOCK = [0.0]


def hours_later() -> None:
    CLOCK[0] += 2 * 3600


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    opened = Site(database_url, tmp_path)
    opened.app.state.integrity = Integrity(database_url, Proofs(), TOPICS, lambda: CLOCK[0])
    make_log(database_url, 25)
    seal_all(database_url)
    yield opened
    opened.close()


def ask(site: Site, **params: Any) -> dict[str, Any]:
    answer = site.get("/audit/verify", "root", admin=True, fresh=False, **params)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_only_operators_may_ask(site: Site) -> None:
    assert site.get("/audit/verify").status_code == 401
    assert site.get("/audit/verify", "alice").status_code == 403


def test_the_first_call_verifies_everything(site: Site) -> None:
    found = ask(site)
    assert datetime.fromisoformat(found["verifiedAt"]) > datetime.now(UTC) - timedelta(minutes=1)
    assert found.pop("completeAt") == found.pop("verifiedAt")
    assert [caveat["kind"] for caveat in found.pop("caveats")] == ["unsigned", "unanchored"]
    assert found == {
        "ok": True,
        "complete": True,
        "from": 1,
        "events": 25,
        "sealedTo": 25,
        "seals": 3,
        "signed": 0,
        "anchored": 0,
        "timestamped": 0,
        "unsealed": 0,
    }


def test_a_result_is_kept_for_an_hour(site: Site, database_url: str) -> None:
    first = ask(site)
    change(database_url, ALTER)
    assert ask(site) == first
    found = ask(site, full="true")
    assert found["fault"]["kind"] == "altered"
    assert (found["ok"], found["fault"]["position"]) == (False, 7)
    assert ask(site) == found, "a fault is the newest result too"


def test_what_came_since_the_last_good_result_is_verified(site: Site, database_url: str) -> None:
    first = ask(site)
    make_log(database_url, 15)
    seal_all(database_url)
    hours_later()
    found = ask(site)
    assert (found["ok"], found["complete"]) == (True, False)
    assert found["completeAt"] == first["verifiedAt"] < found["verifiedAt"]
    assert (found["from"], found["events"], found["sealedTo"], found["seals"]) == (26, 15, 40, 2)


def test_a_fault_is_found_again_until_it_is_mended(site: Site, database_url: str) -> None:
    ask(site)
    change(database_url, ALTER)
    ask(site, full="true")
    hours_later()
    found = ask(site)
    assert (found["ok"], found["complete"], found["fault"]["position"]) == (False, True, 7)


def test_what_another_process_found_is_a_hint(site: Site, database_url: str) -> None:
    other = Integrity(database_url, Proofs(), TOPICS)
    site.run(_no_answers(other.result(full=True)))
    found = ask(site)
    assert (found["complete"], found["hint"]["ok"]) == (True, True)
    assert found["hint"]["verifiedAt"] < found["verifiedAt"]
    change(database_url, ALTER)
    assert ask(site)["ok"], "as it was found a moment ago"
    site.run(_no_answers(other.result(full=True)))
    found = ask(site)
    assert (found["ok"], found["complete"]) == (False, True), "a bad hint has everything looked at"


async def _no_answers(work: Coroutine[Any, Any, object]) -> list[httpx.Response]:
    await work
    return []


def test_after_a_chain_was_written_anew_nothing_counts_as_verified(
    site: Site, database_url: str
) -> None:
    ask(site)
    change(database_url, ALTER)
    change(database_url, "DELETE FROM backlot_seals")
    seal_all(database_url)
    hours_later()
    assert ask(site)["complete"] is True


def test_keys_and_anchors_of_the_settings_are_compared(
    site: Site, database_url: str, tmp_path: Path
) -> None:
    key, path = new_key(), tmp_path / "anchors.jsonl"
    make_log(database_url, 10)
    seal_all(database_url, key=key, anchors=[FileAnchors(path)])
    proofs = Proofs(key.public, anchored(path))
    site.app.state.integrity = Integrity(database_url, proofs, TOPICS)
    found = ask(site, full="true")
    assert (found["ok"], found["signed"], found["anchored"]) == (True, 1, 4)
    path.write_bytes(b"nonsense\n")
    answer = site.get("/audit/verify", "root", admin=True, fresh=False, full="true")
    assert (answer.status_code, answer.json()["type"]) == (503, "unavailable")


def test_anchors_count_from_when_there_are_any(
    site: Site, database_url: str, tmp_path: Path
) -> None:
    settings = load_settings({"SEAL_ANCHOR": f"file:{tmp_path / 'anchors.jsonl'}"})
    proofs = configured_proofs(settings.seals, settings.objects)
    site.app.state.integrity = Integrity(database_url, proofs, TOPICS)
    assert ask(site)["anchored"] == 0
    seal_all(database_url, anchors=proofs.outside.anchors)
    assert ask(site, full="true")["anchored"] == 3


def test_one_verification_serves_all_who_wait_for_it(site: Site, database_url: str) -> None:
    async def three() -> list[httpx.Response]:
        integrity: Integrity = site.app.state.integrity
        found = await asyncio.gather(*(integrity.result(full=True) for _ in range(3)))
        assert found[1] is found[2]
        return []

    site.run(three())
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT count(*) FROM backlot_verifications").fetchone()
    assert row == (2,), "the first began before the others asked"


def test_a_verification_ends_with_its_process(site: Site) -> None:
    integrity: Integrity = site.app.state.integrity
    site.run(integrity.close())
    answer = site.get("/audit/verify", "root", admin=True, fresh=False)
    assert answer.status_code == 503
