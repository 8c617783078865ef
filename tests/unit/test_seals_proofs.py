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

from engine.seals.anchors import (
    Acceptance,
    FileAnchors,
    Head,
    HeadFile,
    anchor_of,
)
from engine.seals.check import Check
from engine.seals.places import AnchorsUnusable
from engine.seals.proofs import (
    KeyUnusable,
    Proofs,
    SealKey,
    read_public_keys,
    read_seal_key,
)
from tests.unit.sealed_logs import (
    KEY,
    OTHER_KEY,
    anchored,
    chain_over,
    checked,
    fault_of,
    hashed,
    log_of,
    named,
)


def keyed(key: SealKey) -> Check:
    return Check(proofs=Proofs(key.public))


def test_who_alters_an_event_and_the_whole_chain_after_it_lacks_the_key() -> None:
    rows = log_of(15)
    rows[6] = rows[6]._replace(state=b"forged")
    forged = chain_over(rows)
    assert checked(rows, forged).ok, "the chain alone can't show it"
    assert named(fault_of(rows, forged, keyed(KEY)))[0] == "signature-invalid"
    genuine = chain_over(log_of(15), KEY)
    with_its_name = chain_over(rows, KEY)
    kept = [
        replace(mine, signature=theirs.signature)
        for mine, theirs in zip(with_its_name, genuine, strict=True)
    ]
    assert named(fault_of(rows, kept, keyed(KEY))) == ("signature-invalid", 6, None, None, 2)
    with_another_key = chain_over(rows, OTHER_KEY)
    assert named(fault_of(rows, with_another_key, keyed(KEY)))[0] == "signature-invalid"
    assert checked(log_of(15), genuine, keyed(KEY)).signed == 3


def test_seals_from_before_signing_are_covered_by_the_first_signed_one() -> None:
    rows = log_of(15)
    assert checked(rows, chain_over(rows, KEY, unsigned=2), keyed(KEY)).ok
    signed = chain_over(rows, KEY)
    unsigned_again = [*signed[:2], hashed(replace(signed[2], key_id=None))]
    fault = fault_of(rows, unsigned_again, keyed(KEY))
    assert named(fault) == ("signature-invalid", 11, None, None, 3)


def test_a_chain_written_anew_differs_from_its_anchors() -> None:
    genuine = chain_over(log_of(15))
    rows = log_of(15)
    rows[6] = rows[6]._replace(state=b"forged")
    check = Check(proofs=anchored(*genuine))
    assert named(fault_of(rows, chain_over(rows), check)) == ("anchor-differs", 6, None, None, 2)


def test_a_log_cut_off_with_its_chain_differs_from_its_anchors() -> None:
    rows = log_of(10)
    check = Check(proofs=anchored(*chain_over(log_of(15))))
    fault = fault_of(rows, chain_over(rows), check)
    assert named(fault) == ("anchor-differs", 11, None, None, 3)


def test_an_export_may_be_older_than_its_anchors() -> None:
    rows = log_of(10)
    proofs = anchored(*chain_over(log_of(15)))
    report = checked(rows, chain_over(rows), Check(proofs=proofs, until=10))
    assert (report.ok, report.anchored) == (True, 2)


def test_anchors_may_begin_later_than_the_chain() -> None:
    rows = log_of(15)
    seals = chain_over(rows)
    report = checked(rows, seals, Check(proofs=anchored(*seals[1:])))
    assert (report.ok, report.anchored) == (True, 2)


def test_a_file_of_anchors_is_read_as_it_was_written(tmp_path: Path) -> None:
    seals = chain_over(log_of(15), KEY)
    store = FileAnchors(tmp_path / "seals.jsonl")
    assert store.newest() is None
    store.append(seals[:2])
    assert store.newest() == anchor_of(seals[2 - 1])
    store.append(seals[2:])
    assert list(store.read()) == list(map(anchor_of, seals))


def test_a_line_torn_by_a_crash_is_written_again(tmp_path: Path) -> None:
    seals = chain_over(log_of(15))
    store = FileAnchors(tmp_path / "seals.jsonl")
    store.append(seals[:2])
    store.path.write_bytes(store.path.read_bytes()[:-5])
    assert [anchor.number for anchor in store.read()] == [1]
    assert store.newest() == anchor_of(seals[1 - 1])
    store.append(seals[1:])
    assert list(store.read()) == list(map(anchor_of, seals))


@pytest.mark.parametrize("content", [b"{}\n", b"no\n", b"[]\n"])
def test_what_is_no_file_of_anchors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seals.jsonl"
    path.write_bytes(content)
    with pytest.raises(AnchorsUnusable, match=r"seals\.jsonl"):
        list(FileAnchors(path).read())
    with pytest.raises(AnchorsUnusable, match=r"seals\.jsonl"):
        FileAnchors(path).newest()


def test_anchors_out_of_order_are_refused(tmp_path: Path) -> None:
    store = FileAnchors(tmp_path / "seals.jsonl")
    store.append(chain_over(log_of(10))[::-1])
    with pytest.raises(AnchorsUnusable, match="out of order"):
        list(store.read())


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


def test_after_an_acceptance_later_anchors_before_it_are_void(tmp_path: Path) -> None:
    seals = chain_over(log_of(25))
    store = FileAnchors(tmp_path / "seals.jsonl")
    accepted = Acceptance("operator:eve", "2026-11-30T08:00:00+00:00", "a restore")
    store.append(seals[:4])
    store.accept(seals[1], accepted)
    newest = store.newest()
    assert newest == (*anchor_of(seals[1]).seal, None, accepted)
    store.append(seals[2:3])
    assert list(store.read()) == list(map(anchor_of, seals[:3]))
    store.accept(None, accepted)
    assert list(store.read()) == []
    store.append(seals[:1])
    assert list(store.read()) == [anchor_of(seals[0])]
    assert [anchor.number for anchor in store.acceptances()] == [2, 0]


def test_a_time_stamp_lies_with_the_last_seal(tmp_path: Path) -> None:
    seals = chain_over(log_of(15))
    store = FileAnchors(tmp_path / "seals.jsonl")
    store.append(seals[:2], b"a token")
    store.append(seals[2:])
    assert [anchor.token for anchor in store.read()] == [None, b"a token", None]


def test_a_head_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    seals, file = chain_over(log_of(15)), HeadFile(tmp_path / "seal-head.json")
    assert file.read() is None
    for seal in (*seals, None):
        head = Head(anchor_of(seal), {"file:/mnt/seals.jsonl": 7})
        file.write(head)
        assert file.read() == head
    assert [path.name for path in tmp_path.iterdir()] == ["seal-head.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"number":1}', b'{"number":1,"first":1,"last":1,"hash":"x"}']
)
def test_what_is_no_head_is_refused(tmp_path: Path, content: bytes) -> None:
    file = HeadFile(tmp_path / "seal-head.json")
    file.path.write_bytes(content)
    with pytest.raises(AnchorsUnusable, match=r"seal-head\.json is not an anchor"):
        file.read()
