"""Time stamps over seals (RFC 3161), asked of a server on loopback that OpenSSL answers for."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.seals.anchors import FileAnchors
from engine.seals.outside import Outside
from engine.seals.proofs import Proofs, SealStamps, configured_proofs, configured_stamps
from infra import metrics
from infra.settings import SettingsError, load_settings
from infra.timestamps import (
    CertificatesUnusable,
    TimestampInvalid,
    TimestampServer,
    TimestampTrust,
    TimestampUnavailable,
    read_trust,
)
from tests.integration.seal_support import install, make_log, seal_all, sealer, verify
from tests.integration.tsa_server import TsaServer, make_authority, tsa_server
from tests.support import requires, unused_port


@pytest.fixture
def tsa(tmp_path: Path) -> Iterator[TsaServer]:
    folder = tmp_path / "tsa"
    folder.mkdir()
    with tsa_server(folder) as server:
        yield server


@pytest.fixture
def trust(tsa: TsaServer) -> TimestampTrust:
    return read_trust(tsa.certificates)


def test_what_was_stamped_is_checked_offline(tsa: TsaServer, trust: TimestampTrust) -> None:
    token = TimestampServer(tsa.url, trust).stamp(b"a hash")
    assert abs(trust.time(token, b"a hash") - datetime.now(UTC)) < timedelta(minutes=5)
    assert trust.fault(token, b"a hash") is None
    assert trust.fault(token, b"another hash") is not None
    assert trust.fault(token[:-1] + bytes([token[-1] ^ 1]), b"a hash") is not None
    assert trust.fault(b"nonsense", b"a hash") is not None


def test_openssl_agrees(tsa: TsaServer, trust: TimestampTrust, tmp_path: Path) -> None:
    token, message = tmp_path / "token.tsr", tmp_path / "hash"
    token.write_bytes(TimestampServer(tsa.url, trust).stamp(b"a hash"))
    message.write_bytes(b"a hash")
    files = ["-data", message, "-in", token, "-CAfile", tsa.certificates]
    command = [requires("openssl"), "ts", "-verify", *map(str, files)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ran.returncode, "Verification: OK" in ran.stdout) == (0, True)


def test_answers_that_prove_nothing_are_refused(
    tsa: TsaServer, trust: TimestampTrust, tmp_path: Path
) -> None:
    server = TimestampServer(tsa.url, trust)
    tsa.answer = server.stamp(b"a hash")
    with pytest.raises(TimestampInvalid, match="Nonce mismatch"):
        server.stamp(b"a hash")
    tsa.answer = b"<html>busy</html>"
    with pytest.raises(TimestampInvalid):
        server.stamp(b"a hash")
    tsa.answer = None
    strangers = read_trust(make_authority(tmp_path))
    with pytest.raises(TimestampInvalid):
        TimestampServer(tsa.url, strangers).stamp(b"a hash")
    with pytest.raises(TimestampUnavailable):
        TimestampServer(f"http://127.0.0.1:{unused_port()}/", trust).stamp(b"a hash")


def test_files_without_certificates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificatesUnusable, match="can't be read"):
        read_trust(tmp_path / "none")
    (tmp_path / "none").write_text("no certificate")
    with pytest.raises(CertificatesUnusable, match="no certificate"):
        read_trust(tmp_path / "none")


def test_seals_are_stamped_one_in_each_interval(
    database_url: str, tsa: TsaServer, trust: TimestampTrust, tmp_path: Path
) -> None:
    now = [0.0]
    stamps = SealStamps(TimestampServer(tsa.url, trust), 3600.0, lambda: now[0])
    anchors = [FileAnchors(tmp_path / "one.jsonl"), FileAnchors(tmp_path / "two.jsonl")]
    install(database_url)
    working = sealer(database_url, anchors=anchors, stamp=stamps, clock=lambda: now[0])
    for hours in (0, 0.5, 1, 1.5):
        now[0] = hours * 3600
        make_log(database_url, 10)
        assert working.turn() == 1
    working.close()
    for store in anchors:
        assert [anchor.token is not None for anchor in store.read()] == [True, False, True, False]
    assert len(tsa.asked) == 2, "both places get the same"
    proofs = Proofs(outside=Outside(anchors=anchors), trust=trust)
    report = verify(database_url, proofs=proofs)
    assert (report.ok, report.anchored, report.timestamped) == (True, 4, 2)


def test_a_stamp_over_another_seal_is_told(
    database_url: str, tsa: TsaServer, trust: TimestampTrust, tmp_path: Path
) -> None:
    store = FileAnchors(tmp_path / "anchors.jsonl")
    make_log(database_url, 10)
    stamps = SealStamps(TimestampServer(tsa.url, trust), 3600.0)
    seal_all(
        database_url, anchors=[store], stamp=lambda seal: stamps(replace(seal, hash=bytes(32)))
    )
    proofs = Proofs(outside=Outside(anchors=[store]), trust=trust)
    fault = verify(database_url, proofs=proofs).fault
    assert fault is not None
    assert (fault.kind, fault.seal) == ("timestamp-invalid", 1)
    assert verify(database_url, proofs=replace(proofs, trust=None)).timestamped == 0


def test_a_server_that_is_away_stops_neither_seals_nor_anchors(
    database_url: str, tsa: TsaServer, trust: TimestampTrust, tmp_path: Path
) -> None:
    now = [0.0]
    stamps = SealStamps(TimestampServer(tsa.url, trust), 3600.0, lambda: now[0])
    store = FileAnchors(tmp_path / "anchors.jsonl")
    install(database_url)
    working = sealer(database_url, anchors=[store], stamp=stamps, clock=lambda: now[0])
    counted = metrics.value("backlot_seal_failures_total", step="timestamp")
    tsa.answer = b"busy"
    for _ in range(2):
        make_log(database_url, 10)
        assert working.turn() == 1
    assert metrics.value("backlot_seal_failures_total", step="timestamp") == counted + 1
    tsa.answer = None
    now[0] = 61.0
    make_log(database_url, 10)
    assert working.turn() == 1, "it is asked again after a minute"
    working.close()
    assert [anchor.token is not None for anchor in store.read()] == [False, False, True]


def test_the_settings_make_it(tsa: TsaServer, tmp_path: Path, database_url: str) -> None:
    own = {"SEAL_TSA_URL": tsa.url, "SEAL_TSA_CA_FILE": str(tsa.certificates)}
    settings = load_settings({**own, "SEAL_ANCHOR": f"file:{tmp_path / 'anchors.jsonl'}"})
    proofs = configured_proofs(settings.seals, settings.objects)
    make_log(database_url, 10)
    stamp = configured_stamps(settings.seals)
    seal_all(database_url, anchors=proofs.outside.anchors, stamp=stamp)
    assert verify(database_url, proofs=proofs).timestamped == 1
    with pytest.raises(SettingsError, match="SEAL_TSA_URL: set SEAL_ANCHOR too"):
        load_settings(own)
    with pytest.raises(SettingsError, match="SEAL_TSA_URL: set SEAL_TSA_CA_FILE too"):
        load_settings({"SEAL_TSA_URL": tsa.url})
