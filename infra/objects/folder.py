"""The object store of the embedded shape: a folder, as durable as the disk under it.

URLs carry their own permission, so that bytes are moved without a JWT, as on S3.

`uploads/` holds a folder per upload with a file per part, `fragments/` one with what has come of
parts that are not whole, `objects/<key>/` one file named by its ETag, `tmp/` whatever is being
written. Everything appears by one rename: nothing or all of it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from infra.cancellation import to_the_end
from infra.objects.disk import (
    Disk,
    PartFile,
    PartSpool,
    join_files,
    move_new_folder,
    publish_part,
    scan_parts,
    sync_folder,
)
from infra.objects.fragments import FolderWriter
from infra.objects.port import (
    Checksum,
    NoSuchUpload,
    ObjectStoreError,
    ObjectStoreUnavailable,
    OpenUpload,
    Part,
    PartMismatch,
    PartRef,
    SignedUrl,
    StoredObject,
    check_key,
    check_part,
    multipart_etag,
    ordered_refs,
    safe_content_type,
    safe_filename,
)

UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
UPLOAD_FOLDER = re.compile(r"videos_([0-9a-f-]{36})_([0-9a-f]{32})")
JOIN_ATTEMPTS = 3
MIN_SECRET_BYTES = 16
OBJECT_NAME = re.compile(r"[0-9a-f]{32}-[0-9]{1,5}")


class BadSignature(ObjectStoreError):
    """Not signed by us, or not for this method, key and parameters."""

    def __init__(self) -> None:
        super().__init__("The URL's signature is wrong; ask for a new URL and use it unchanged.")


class UrlExpired(ObjectStoreError):
    """Signed by us, but its time is over."""

    def __init__(self) -> None:
        super().__init__("The URL has expired; ask for a new one.")


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """A completed object as it lies on the disk."""

    stored: StoredObject
    path: Path
    stat: os.stat_result


class FolderStore:
    """An ObjectStore whose URLs lead back to Backlot itself."""

    def __init__(
        self, root: Path, secret: bytes, url_ttl: timedelta, clock: Callable[[], datetime]
    ) -> None:
        """`secret` signs the URLs; another one makes those given out so far useless."""
        self._disk = Disk(root)
        self.signer = UrlSigner(secret, url_ttl, clock)
        self.part_url, self.get_url = self.signer.part_url, self.signer.get_url
        self.writer = FolderWriter(self._disk, self.put_part)

    async def recover(self) -> None:
        """Make the folders and remove what a crash left over.

        To be called at the start, by the one process that writes to this folder: it also
        removes the parts that are just being received.
        """
        await self._disk.run(self._recover)

    async def check(self) -> None:
        await self._disk.run(self._disk.probe)

    async def begin(self, key: str) -> str:
        return await self._disk.run(self._begin, check_key(key))

    async def put_part(
        self,
        key: str,
        store_upload_id: str,
        number: int,
        size: int,
        chunks: AsyncIterable[bytes],
        checksums: Sequence[Checksum] = (),
    ) -> Part:
        """Keep `chunks` as part `number` if they are `size` bytes with these checksums.

        Raise NoSuchUpload, PartTooLarge, PartTooShort, ChecksumMismatch and whatever `chunks`
        raises; then nothing is kept, and an earlier part of that number stays.
        """
        folder_name = _folder_name(key, store_upload_id)
        spool = await self._disk.run(self._open_spool, key, folder_name)
        try:
            etag = await PartSpool(self._disk, spool, size, checksums).receive(chunks)
            return await self._disk.run(self._publish, spool, folder_name, number, etag, size)
        except BaseException:
            await to_the_end(self._disk.run(spool.unlink, True))
            raise

    async def list_parts(self, key: str, store_upload_id: str) -> list[Part]:
        files = await self._disk.run(self._holding, _folder_name(key, store_upload_id))
        return [file.part for file in files.values()]

    async def last_arrival(self, key: str, store_upload_id: str) -> datetime | None:
        return await self._disk.run(self._last_arrival, _folder_name(key, store_upload_id))

    async def list_uploads(self, older_than: datetime) -> list[OpenUpload]:
        return await self._disk.run(self._older_uploads, older_than.timestamp())

    async def complete(
        self, key: str, store_upload_id: str, parts: Sequence[PartRef]
    ) -> StoredObject:
        folder_name = _folder_name(key, store_upload_id)
        return await self._disk.run(self._complete, key, folder_name, ordered_refs(parts))

    async def abort(self, key: str, store_upload_id: str) -> None:
        with suppress(NoSuchUpload):
            await self._disk.run(self._discard, "uploads", _folder_name(key, store_upload_id))

    async def head(self, key: str) -> StoredObject | None:
        found = await self.find(key)
        return found.stored if found else None

    async def find(self, key: str) -> ObjectFile | None:
        """Return the completed object's file, or None; it never changes, but it may be deleted."""
        return await self._disk.run(self._find, check_key(key))

    async def delete(self, key: str) -> None:
        await self._disk.run(self._discard, "objects", check_key(key))

    def _recover(self) -> None:
        self._disk.prepare()
        for folder in list(self._disk.inside("uploads").iterdir()):
            named = UPLOAD_FOLDER.fullmatch(folder.name)
            if named and self._find(f"videos/{named[1]}"):
                self._disk.discard(folder)

    def _begin(self, key: str) -> str:
        upload_id = secrets.token_hex(16)
        uploads = self._disk.area("uploads")
        (uploads / _folder_name(key, upload_id)).mkdir()
        sync_folder(uploads)
        return upload_id

    def _open_spool(self, key: str, folder_name: str) -> Path:
        if not self._disk.inside("uploads", folder_name).is_dir() or self._find(key):
            raise NoSuchUpload
        return self._disk.scratch()

    def _publish(self, spool: Path, folder_name: str, number: int, etag: str, size: int) -> Part:
        try:
            folder = self._disk.inside("uploads", folder_name)
            return publish_part(spool, folder, number, etag, size)
        except FileNotFoundError:
            raise NoSuchUpload from None

    def _holding(self, folder_name: str) -> dict[int, PartFile]:
        try:
            files = scan_parts(self._disk.inside("uploads", folder_name))
            # Of several with one number the last, which is the greatest, holds.
            return {file.number: file for file in files}
        except FileNotFoundError:
            raise NoSuchUpload from None

    def _last_arrival(self, folder_name: str) -> datetime | None:
        folder = self._disk.inside("uploads", folder_name)
        try:
            # Every part that arrives gets a name in the folder, which changes its time.
            changed = folder.stat().st_mtime if scan_parts(folder) else None
        except FileNotFoundError:
            raise NoSuchUpload from None
        return None if changed is None else datetime.fromtimestamp(changed, UTC)

    def _older_uploads(self, older_than: float) -> list[OpenUpload]:
        found = []
        for folder in list(self._disk.inside("uploads").iterdir()):
            named = UPLOAD_FOLDER.fullmatch(folder.name)
            with suppress(FileNotFoundError):
                # Its time is that of the latest part, which is never before the beginning.
                if named and folder.stat().st_mtime < older_than:
                    found.append(OpenUpload(f"videos/{named[1]}", named[2]))
        return found

    def _complete(self, key: str, folder_name: str, refs: list[PartRef]) -> StoredObject:
        found = self._find(key)
        for _ in range(JOIN_ATTEMPTS):
            if found is not None:
                break
            # When a part vanishes meanwhile, an abort, a re-sent part or another completion came
            # between: looking again tells which.
            with suppress(FileNotFoundError):
                self._join(key, self._select(folder_name, refs), multipart_etag(refs))
            found = self._find(key)
        if found is None:
            raise ObjectStoreUnavailable(f"The parts of {key} change faster than they are joined.")
        if found.stored.etag != multipart_etag(refs):
            raise PartMismatch(wrong=[ref.number for ref in refs])
        self._discard("uploads", folder_name)
        return found.stored

    def _select(self, folder_name: str, refs: list[PartRef]) -> list[PartFile]:
        holding = self._holding(folder_name)
        missing = [ref.number for ref in refs if ref.number not in holding]
        files = [holding[ref.number] for ref in refs if ref.number in holding]
        named = {ref.number: ref.etag for ref in refs}
        wrong = [
            f.number for f in files if (f.etag, f.path.stat().st_size) != (named[f.number], f.size)
        ]
        if missing or wrong:
            raise PartMismatch(missing, wrong)
        return files

    def _join(self, key: str, files: list[PartFile], etag: str) -> None:
        """Publish the object, unless another completion was first. Raise FileNotFoundError."""
        self._disk.area("objects/videos")
        whole = self._disk.scratch()
        whole.mkdir()
        try:
            join_files([(file.path, file.size) for file in files], whole / etag)
            sync_folder(whole)
            move_new_folder(whole, self._disk.inside("objects", key))
        finally:
            shutil.rmtree(whole, ignore_errors=True)

    def _find(self, key: str) -> ObjectFile | None:
        try:
            with os.scandir(self._disk.inside("objects", key)) as entries:
                for entry in entries:
                    if OBJECT_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        stat = entry.stat(follow_symlinks=False)
                        stored = StoredObject(key, stat.st_size, entry.name)
                        return ObjectFile(stored, Path(entry.path), stat)
        except FileNotFoundError:
            pass
        return None

    def _discard(self, *names: str) -> None:
        self._disk.discard(self._disk.inside(*names))


def _folder_name(key: str, upload_id: str) -> str:
    """Raise InvalidKey, and NoSuchUpload for an id that can't be ours."""
    if not UPLOAD_ID.fullmatch(upload_id):
        raise NoSuchUpload
    return f"{check_key(key).replace('/', '_')}_{upload_id}"


class UrlSigner:
    """HMAC-SHA256 over method, path and every parameter, each for `ttl` from now."""

    def __init__(self, secret: bytes, ttl: timedelta, clock: Callable[[], datetime]) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret for URLs needs at least {MIN_SECRET_BYTES} bytes")
        self._secret, self._ttl, self._clock = secret, ttl, clock

    def part_url(
        self, key: str, upload_id: str, number: int, size: int, base_url: str
    ) -> SignedUrl:
        """Return a URL for one PUT of exactly `size` bytes; raise InvalidKey."""
        check_part(number, size)
        return self._url("PUT", key, _part_query(upload_id, number, size), base_url)

    def get_url(self, key: str, content_type: str, filename: str, base_url: str) -> SignedUrl:
        """Return a URL for GET and HEAD that fixes type and name, both made safe."""
        query = _get_query(safe_content_type(content_type), safe_filename(filename))
        return self._url("GET", key, query, base_url)

    def verify_part(
        self, key: str, upload_id: str, number: int, size: int, expires: int, signature: str
    ) -> None:
        """Raise BadSignature or UrlExpired unless `part_url` signed exactly this."""
        self._verify("PUT", key, _part_query(upload_id, number, size), expires, signature)

    def verify_get(
        self, key: str, content_type: str, filename: str, expires: int, signature: str
    ) -> None:
        """Raise BadSignature or UrlExpired unless `get_url` signed exactly this."""
        self._verify("GET", key, _get_query(content_type, filename), expires, signature)

    def _url(self, method: str, key: str, query: Mapping[str, str], base_url: str) -> SignedUrl:
        expires = math.ceil((self._clock() + self._ttl).timestamp())
        path = f"/objects/{check_key(key)}"
        signature = self._sign(method, path, query, expires)
        full = _encode({**query, "expires": str(expires), "signature": signature})
        url = f"{base_url.rstrip('/')}{path}?{full}"
        return SignedUrl(url, datetime.fromtimestamp(expires, UTC))

    def _verify(
        self, method: str, key: str, query: Mapping[str, str], expires: int, signature: str
    ) -> None:
        expected = self._sign(method, f"/objects/{key}", query, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode(errors="replace")):
            raise BadSignature
        if self._clock().timestamp() >= expires:
            raise UrlExpired

    def _sign(self, method: str, path: str, query: Mapping[str, str], expires: int) -> str:
        # Encoded values hold no line break and no "&", so two requests never read the same.
        text = "\n".join((method, path, _encode({**query, "expires": str(expires)})))
        return hmac.new(self._secret, text.encode(errors="replace"), hashlib.sha256).hexdigest()


def _part_query(upload_id: str, number: int, size: int) -> dict[str, str]:
    return {"uploadId": upload_id, "partNumber": str(number), "size": str(size)}


def _get_query(content_type: str, filename: str) -> dict[str, str]:
    return {"contentType": content_type, "filename": filename}


def _encode(query: Mapping[str, str]) -> str:
    return urlencode(query, errors="replace")
