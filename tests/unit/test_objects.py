"""The object store's arithmetic and its words: ETags, names, signatures, what a sick disk says."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from anyio import run

from infra.objects.disk import Disk, PartFile, write_all
from infra.objects.folder import BadSignature, UrlExpired, UrlSigner
from infra.objects.port import (
    ALGORITHMS,
    Checksum,
    ChecksumUnreadable,
    ObjectStoreUnavailable,
    PartMismatch,
    PartRef,
    disposition,
    multipart_etag,
    ordered_refs,
    read_checksums,
    safe_content_type,
    safe_filename,
)
from tests.real_inputs import RealInput, each

NOW = datetime(2026, 11, 22, 12, 0, 0, 500_000, UTC)
KEY = "videos/0b0e5b3e-59a5-4c0b-8f0e-0d6f0f1b2c3d"
UPLOAD = "0" * 32
ONE, TWO = md5(b"one").hexdigest(), md5(b"two").hexdigest()


def signer(secret: bytes = b"a secret of some length", at: datetime = NOW) -> UrlSigner:
    return UrlSigner(secret, timedelta(minutes=10), lambda: at)


def signature_in(url: str) -> str:
    return parse_qs(urlsplit(url).query)["signature"][0]


def test_the_multipart_etag_is_the_one_of_s3() -> None:
    digests = md5(b"one").digest() + md5(b"two").digest()
    assert multipart_etag([PartRef(1, ONE), PartRef(2, TWO)]) == md5(digests).hexdigest() + "-2"


def test_named_parts_are_put_in_order_and_stripped_of_quotes() -> None:
    assert ordered_refs([PartRef(2, f'"{TWO}"'), PartRef(1, ONE.upper())]) == [
        PartRef(1, ONE),
        PartRef(2, TWO),
    ]


def test_a_mismatch_says_which_parts_but_not_thousands_of_them() -> None:
    assert str(PartMismatch([2, 3], [7])) == "Missing parts: 2, 3. Parts named wrongly: 7."
    assert str(PartMismatch()) == "No parts were named."
    assert str(PartMismatch(range(1, 10_001))).endswith("19, 20 and 9980 more.")


def test_of_one_number_the_part_sent_last_is_the_greatest() -> None:
    folder = Path("parts")
    tries = [PartFile.within(folder, 1, turn, ONE if turn % 2 else TWO, 3) for turn in (2, 10, 9)]
    assert max(tries).turn == 10
    assert [PartFile.named(file.path) for file in tries] == tries


@pytest.mark.parametrize("name", ["", "00001", f"1-1-{ONE}-3", f"00001-1-{ONE}-3.tmp"])
def test_a_foreign_name_is_no_part(name: str) -> None:
    assert PartFile.named(Path("parts") / name) is None


def test_a_url_lives_as_long_as_it_says() -> None:
    signed = signer().part_url(KEY, UPLOAD, 3, 99, "https://here/base/")
    expires = int(signed.expires_at.timestamp())
    assert signed.expires_at - NOW == timedelta(minutes=10, milliseconds=500)
    assert signed.url == (
        f"https://here/base/objects/{KEY}?uploadId={UPLOAD}&partNumber=3&size=99"
        f"&expires={expires}&signature={signature_in(signed.url)}"
    )
    part = (KEY, UPLOAD, 3, 99, expires, signature_in(signed.url))
    signer(at=signed.expires_at - timedelta(milliseconds=1)).verify_part(*part)
    with pytest.raises(UrlExpired):
        signer(at=signed.expires_at).verify_part(*part)
    with pytest.raises(BadSignature):
        signer(secret=b"another secret, as long").verify_part(*part)


def test_values_cannot_slip_into_one_another() -> None:
    signed = signer().get_url(KEY, "video/mp4", "a&expires=1.mp4", "")
    expires = int(signed.expires_at.timestamp())
    signature = signature_in(signed.url)
    signer().verify_get(KEY, "video/mp4", "a&expires=1.mp4", expires, signature)
    for content_type, filename in (("video/mp4&filename=a", "1.mp4"), ("video/mp4", "a")):
        with pytest.raises(BadSignature):
            signer().verify_get(KEY, content_type, filename, expires, signature)


@pytest.mark.parametrize("signature", ["", "é", "\ud800", "0" * 64])
def test_no_text_is_too_odd_to_be_a_wrong_signature(signature: str) -> None:
    with pytest.raises(BadSignature):
        signer().verify_part(KEY + "\n", "\ud800", 0, -1, 10**30, signature)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        signer(secret=b"short")


@each("file_names")
def test_file_names_are_made_safe(real: RealInput) -> None:
    assert safe_filename(real.text) == real.right


def test_long_file_names_keep_their_ending() -> None:
    assert safe_filename("x" * 200 + ".mp4") == "x" * 146 + ".mp4"


@each("media_types")
def test_types_that_are_no_films_become_bytes(real: RealInput) -> None:
    refused = real.right == "refused"
    assert safe_content_type(real.text) == ("application/octet-stream" if refused else real.right)


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("video/mp4", "inline"),
        ("Video/WebM;codecs=vp9,opus", "inline"),
        ("audio/mpeg", "inline"),
        ("video/x-msvideo", "attachment"),
        ("application/octet-stream", "attachment"),
        ("text/html", "attachment"),
        ("", "attachment"),
    ],
)
def test_browsers_show_only_what_they_play(content_type: str, shown: str) -> None:
    assert disposition(content_type) == shown


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "its disk is full: free some space"),
        (errno.EROFS, "its file system is read-only: mount it writable"),
        (errno.EIO, "[Errno 5] Input/output error"),
    ],
)
def test_a_sick_disk_is_told_with_what_to_do(number: int, advice: str) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(ObjectStoreUnavailable) as caught:
        run(Disk(Path("/objects")).run, fail)
    assert caught.value.cause == f"The object folder /objects can't be used: {advice}."


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw=="),
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
        ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
        ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
    ],
)
def test_checksums_are_those_of_s3(header: str, value: str) -> None:
    hashing = ALGORITHMS[header]()
    for piece in (b"1234", b"", b"56789"):
        hashing.update(piece)
    headers = [("host", "here"), (header, value), ("x-amz-sdk-checksum-algorithm", "CRC32")]
    assert read_checksums(headers) == [Checksum(header, hashing.digest())]


@pytest.mark.parametrize("value", ["", "y_Q5Jg==", "y/Q5Jg", "y/Q5Jg==\u00e9", "y/Q5", "y/Q5JgA="])
def test_what_is_no_checksum_is_told_with_its_length(value: str) -> None:
    with pytest.raises(ChecksumUnreadable, match=r"x-amz-checksum-crc32 .* base64 of 4 bytes"):
        read_checksums([("x-amz-checksum-crc32", value)])


def test_a_write_goes_on_where_the_kernel_left_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, bytes(content[:3])))
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    write_all(descriptor, b"12345678")
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"12345678"
