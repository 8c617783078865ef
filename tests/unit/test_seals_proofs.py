"""Who can rewrite the whole chain is found out by signatures and anchors alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from engine.seals.check import Check
from engine.seals.proofs import (
    AnchorsUnusable,
    FileAnchors,
    KeyUnusable,
    SealKey,
    read_anchors,
    read_public_keys,
    read_seal_key,
)
from tests.unit.sealed_logs import anchors_of, chain_over, checked, fault_of, log_of, named

KEY = SealKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_KEY = SealKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))


def keyed(key: SealKey) -> Check:
    return Check(public_keys=key.public)


def test_who_alters_an_event_and_the_whole_chain_after_it_lacks_the_key() -> None:
    rows = log_of(15)
    rows[6] = rows[6]._replace(state=b"forged")
    forged = chain_over(rows)
    assert checked(rows, forged).ok, "the chain alone can't show it"
    assert named(fault_of(rows, forged, keyed(KEY)))[0] == "signature-invalid"
    genuine = chain_over(log_of(15), KEY)
    kept = [
        replace(mine, signature=theirs.signature, key_id=theirs.key_id)
        for mine, theirs in zip(forged, genuine, strict=True)
    ]
    assert named(fault_of(rows, kept, keyed(KEY))) == ("signature-invalid", 6, None, None, 2)
    with_another_key = chain_over(rows, OTHER_KEY)
    assert named(fault_of(rows, with_another_key, keyed(KEY)))[0] == "signature-invalid"
    assert checked(log_of(15), genuine, keyed(KEY)).signed == 3


def test_seals_from_before_signing_are_covered_by_the_first_signed_one() -> None:
    rows = log_of(15)
    signed = chain_over(rows, KEY)
    later = [replace(seal, signature=None, key_id=None) for seal in signed[:2]] + signed[2:]
    assert checked(rows, later, keyed(KEY)).ok
    unsigned_again = [*signed[:2], replace(signed[2], signature=None, key_id=None)]
    fault = fault_of(rows, unsigned_again, keyed(KEY))
    assert named(fault) == ("signature-invalid", 11, None, None, 3)


def test_a_chain_written_anew_differs_from_its_anchors() -> None:
    genuine = chain_over(log_of(15))
    rows = log_of(15)
    rows[6] = rows[6]._replace(state=b"forged")
    check = Check(anchors=anchors_of(*genuine))
    assert named(fault_of(rows, chain_over(rows), check)) == ("anchor-differs", 6, None, None, 2)


def test_a_log_cut_off_with_its_chain_differs_from_its_anchors() -> None:
    rows = log_of(10)
    check = Check(anchors=anchors_of(*chain_over(log_of(15))))
    fault = fault_of(rows, chain_over(rows), check)
    assert named(fault) == ("anchor-differs", 11, None, None, 3)


def test_an_export_may_be_older_than_its_anchors() -> None:
    rows = log_of(10)
    anchors = anchors_of(*chain_over(log_of(15)))
    report = checked(rows, chain_over(rows), Check(anchors=anchors, until=10))
    assert (report.ok, report.anchored) == (True, 2)


def test_anchors_may_begin_later_than_the_chain() -> None:
    rows = log_of(15)
    seals = chain_over(rows)
    report = checked(rows, seals, Check(anchors=anchors_of(*seals[1:])))
    assert (report.ok, report.anchored) == (True, 2)


def test_a_file_of_anchors_is_read_as_it_was_written(tmp_path: Path) -> None:
    seals = chain_over(log_of(15), KEY)
    store = FileAnchors(tmp_path / "seals.jsonl")
    assert store.last_number() == 0
    store.append(seals[:2])
    assert store.last_number() == 2
    store.append(seals[2:])
    assert list(read_anchors(store.path)) == list(anchors_of(*seals))


def test_a_line_torn_by_a_crash_is_written_again(tmp_path: Path) -> None:
    seals = chain_over(log_of(15))
    store = FileAnchors(tmp_path / "seals.jsonl")
    store.append(seals[:2])
    store.path.write_bytes(store.path.read_bytes()[:-5])
    assert [anchor.number for anchor in read_anchors(store.path)] == [1]
    assert store.last_number() == 1
    store.append(seals[1:])
    assert list(read_anchors(store.path)) == list(anchors_of(*seals))


@pytest.mark.parametrize("content", [b"{}\n", b"no\n", b"[]\n"])
def test_what_is_no_file_of_anchors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seals.jsonl"
    path.write_bytes(content)
    with pytest.raises(AnchorsUnusable, match=r"seals\.jsonl"):
        list(read_anchors(path))
    with pytest.raises(AnchorsUnusable, match=r"seals\.jsonl"):
        FileAnchors(path).last_number()


def test_anchors_out_of_order_are_refused(tmp_path: Path) -> None:
    store = FileAnchors(tmp_path / "seals.jsonl")
    store.append(chain_over(log_of(10))[::-1])
    with pytest.raises(AnchorsUnusable, match="out of order"):
        list(read_anchors(store.path))


def test_keys_are_read_from_pem_files(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    mine = Ed25519PrivateKey.generate()
    private.write_bytes(mine.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    older = Ed25519PrivateKey.generate().public_key()
    public.write_bytes(
        b"".join(
            key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            for key in (older, mine.public_key())
        )
    )
    key = read_seal_key(private)
    assert len(key.key_id) == 16
    signature = key.sign(bytes(32))
    assert read_public_keys(public).fault(bytes(32), signature, key.key_id) is None
    assert read_public_keys(public).fault(bytes(31) + b"1", signature, key.key_id) is not None
    with pytest.raises(KeyUnusable, match=r"public\.pem"):
        read_seal_key(public)


def test_other_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(KeyUnusable, match="can't be read"):
        read_seal_key(path)
    ec = generate_private_key(SECP256R1())
    path.write_bytes(ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyUnusable, match="another kind of key"):
        read_seal_key(path)
    with pytest.raises(KeyUnusable, match="no public key"):
        read_public_keys(path)
