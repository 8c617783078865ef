"""Anchors in a bucket with object lock: what counts is what was written first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from engine.seals.anchors import Acceptance, BucketAnchors, anchor_of
from engine.seals.forgotten_list import ForgottenList, person_digest
from engine.seals.outside import Outside
from engine.seals.places import AnchorsUnusable, LockedObjects
from engine.seals.proofs import Proofs, configured_anchors
from engine.seals.sealer import LogRewritten
from infra.settings import SettingsError, load_settings
from tests.integration.s3_server import REGION, S3Server, s3_server
from tests.integration.seal_support import change, install, make_log, sealer, verify
from tests.unit.sealed_logs import chain_over, log_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "proofs"
RETENTION = timedelta(days=30)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def client(s3: S3Server) -> Iterator[S3Client]:
    """A look into the store, which has an empty bucket with object lock."""
    client = s3.client()
    location = {"LocationConstraint": REGION}
    client.create_bucket(
        Bucket=BUCKET,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration=location,  # type: ignore[arg-type]
    )
    yield client
    versions = client.list_object_versions(Bucket=BUCKET)
    for each in [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])]:
        client.delete_object(
            Bucket=BUCKET,
            Key=each["Key"],
            VersionId=each["VersionId"],
            BypassGovernanceRetention=True,
        )
    client.delete_bucket(Bucket=BUCKET)


def bucket(s3: S3Server, pause_seconds: float = 0.0) -> BucketAnchors:
    return BucketAnchors(
        s3.place(bucket=BUCKET),
        "backlot/seals",
        mode="governance",
        retention=RETENTION,
        pause_seconds=pause_seconds,
    )


def test_what_is_written_is_read_by_whoever_comes_later(s3: S3Server, client: S3Client) -> None:
    seals, store = chain_over(log_of(20)), bucket(s3)
    assert store.newest() is None
    assert list(store.read()) == []
    store.append(seals[:1])
    store.append(seals[1:3], b"a token")
    bucket(s3).append(seals[3:])
    later = bucket(s3)
    assert later.newest() == anchor_of(seals[3])
    assert [anchor.seal for anchor in later.read()] == [anchor_of(seal).seal for seal in seals]
    assert [anchor.token for anchor in later.read()] == [None, None, b"a token", None]


def test_objects_are_locked_for_the_time_that_is_set(s3: S3Server, client: S3Client) -> None:
    bucket(s3).append(chain_over(log_of(5)))
    (held,) = client.list_objects_v2(Bucket=BUCKET)["Contents"]
    found = client.head_object(Bucket=BUCKET, Key=held["Key"])
    assert found["ObjectLockMode"] == "GOVERNANCE"
    left = found["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert RETENTION - timedelta(hours=1) < left <= RETENTION


def test_neither_a_newer_version_nor_a_marker_hides_an_anchor(
    s3: S3Server, client: S3Client
) -> None:
    seals = chain_over(log_of(20))
    store = bucket(s3)
    for seal in seals:
        store.append([seal])
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    forged = client.get_object(Bucket=BUCKET, Key=keys[2])["Body"].read()
    client.put_object(Bucket=BUCKET, Key=keys[0], Body=forged)
    client.delete_object(Bucket=BUCKET, Key=keys[1])
    later = bucket(s3)
    assert later.newest() == anchor_of(seals[3])
    assert list(later.read()) == list(map(anchor_of, seals))


def test_an_acceptance_makes_later_anchors_void(s3: S3Server, client: S3Client) -> None:
    seals, store = chain_over(log_of(20)), bucket(s3)
    store.append(seals)
    store.accept(seals[1], Acceptance("operator:eve", "2026-11-30T08:00:00+00:00", "a restore"))
    store.append(seals[2:3])
    assert [anchor.number for anchor in store.read()] == [1, 2, 3]
    (accepted,) = store.acceptances()
    assert (accepted.number, accepted.acceptance and accepted.acceptance.reason) == (2, "a restore")


def test_a_sealer_without_a_head_is_held_by_the_bucket(
    s3: S3Server, client: S3Client, database_url: str
) -> None:
    """As in a container whose data folder is gone with it."""
    now = [0.0]
    make_log(database_url, 30)
    install(database_url)
    working = sealer(database_url, anchors=[bucket(s3, 60.0)], clock=lambda: now[0])
    assert working.turn() == 3
    make_log(database_url, 10)
    assert working.turn() == 1
    assert len(client.list_objects_v2(Bucket=BUCKET)["Contents"]) == 1, "at most one a minute"
    now[0] = 61.0
    assert working.turn() == 0
    working.close()
    store = bucket(s3)
    assert [anchor.number for anchor in store.read()] == [1, 2, 3, 4]
    assert verify(database_url, proofs=Proofs(outside=Outside(anchors=[store]))).anchored == 4
    change(database_url, "DELETE FROM backlot_seals WHERE number = 4")
    change(database_url, "DELETE FROM backlot_events WHERE notification_id > 30")
    another = sealer(database_url, anchors=[bucket(s3)])
    with pytest.raises(LogRewritten, match="the seals end with 3, and s3://proofs/backlot/seals"):
        another.turn()
    another.close()


def test_a_bucket_that_is_away_stops_no_seal(s3: S3Server, database_url: str) -> None:
    make_log(database_url, 30)
    install(database_url)
    store = BucketAnchors(
        s3.place(bucket="nowhere"),
        "seals",
        mode="compliance",
        retention=RETENTION,
        pause_seconds=60.0,
    )
    with pytest.raises(AnchorsUnusable, match="there is no such bucket"):
        store.newest()
    working = sealer(database_url, anchors=[store])
    assert working.turn() == 3
    working.close()


def test_the_settings_name_files_and_buckets(s3: S3Server) -> None:
    settings = load_settings(
        {**s3.settings(), "SEAL_ANCHOR": "file:/mnt/seals.jsonl, s3://proofs/backlot/seals"}
    )
    stores = configured_anchors(settings.seals, settings.objects)
    assert [store.name for store in stores] == [
        "file:/mnt/seals.jsonl",
        "s3://proofs/backlot/seals",
    ]
    assert [store.pause_seconds for store in stores] == [0.0, 60.0]
    for wrong in ("s3://proofs", "s3:///seals", "proofs", "file:", "s3://proofs/seals/"):
        with pytest.raises(SettingsError, match="SEAL_ANCHOR: must be file: and the path"):
            load_settings({"SEAL_ANCHOR": wrong})


def forgotten(s3: S3Server) -> LockedObjects:
    place = s3.place(bucket=BUCKET)
    return LockedObjects(
        place, "seals.forgotten", mode="governance", retention=RETENTION, keeps=True
    )


def test_of_two_who_write_down_at_once_who_was_forgotten_none_is_lost(
    s3: S3Server, client: S3Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = person_digest("ann"), person_digest("bob")
    at, slow, quick = datetime(2026, 11, 30, tzinfo=UTC), forgotten(s3), forgotten(s3)
    append = slow.append

    def overtaken(lines: Iterable[bytes]) -> None:
        monkeypatch.setattr(slow, "append", append)
        ForgottenList(quick).add({bob: at})
        append(lines)

    monkeypatch.setattr(slow, "append", overtaken)
    ForgottenList(slow).add({ann: at})
    assert ForgottenList(forgotten(s3)).read() == {ann: at, bob: at}
    # What was written second under the same name does not count, and cannot hide the first.
    assert len(client.list_object_versions(Bucket=BUCKET)["Versions"]) == 3


def test_the_anchors_beside_it_are_read_as_ever(s3: S3Server, client: S3Client) -> None:
    seals = chain_over(log_of(10))
    place = s3.place(bucket=BUCKET)
    anchors = BucketAnchors(
        place, "seals", mode="governance", retention=RETENTION, pause_seconds=0.0
    )
    anchors.append(seals)
    ForgottenList(forgotten(s3)).add({person_digest("ann"): datetime.now(UTC)})
    assert anchors.newest() == anchor_of(seals[-1])
    assert len(list(anchors.read())) == 2
