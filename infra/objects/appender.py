"""Bytes appended to an upload under way, from wherever the last request was cut off.

What fills a part goes into the store as that part; the rest is kept as a fragment. Nothing is held
in memory but a block: what comes is written to a temporary file first, one part at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple, TypeVar

import structlog
from anyio import to_thread

from infra.objects.disk import (
    BLOCK_BYTES,
    COPY_BYTES,
    ChecksumMismatch,
    PartCutOff,
    PartStalled,
    PartTooLarge,
)
from infra.objects.fragments import Fragment, covering
from infra.objects.port import (
    ALGORITHMS,
    OBJECT_STORE_FAILURES,
    Checksum,
    NoSuchUpload,
    ObjectStore,
    ObjectStoreError,
    ObjectStoreUnavailable,
)

log = structlog.get_logger(__name__)

# Beyond so many fragments of a part they are made one: requests may be as small as a byte.
MOST_FRAGMENTS = 32

T = TypeVar("T")


class UploadPlace(NamedTuple):
    """An upload in the store, and the sizes of its parts in bytes."""

    key: str
    store_upload_id: str
    part_sizes: Sequence[int]


class Received(NamedTuple):
    """How many bytes came, and what ended them before their time."""

    size: int
    broken: ObjectStoreError | None = None


@dataclass
class Appender:
    """An upload as far as it has come: its first `whole` parts, and `covered`, of the next one.

    Several requests may append at the same time, as when a client comes back before its former
    connection is known to be lost: they send the same file, so whoever is last writes the same.
    """

    store: ObjectStore
    place: UploadPlace
    whole: int = 0
    covered: tuple[Fragment, ...] = ()

    @classmethod
    async def find(cls, store: ObjectStore, place: UploadPlace) -> Appender:
        """Return the upload as it is in the store; one that was joined already is complete.

        Raise NoSuchUpload.
        """
        found = cls(store, place)
        try:
            parts = await store.list_parts(place.key, place.store_upload_id)
        except NoSuchUpload:
            if await store.head(place.key) is None:
                raise
            found.whole = len(place.part_sizes)
            return found
        arrived = {part.number: part.size for part in parts}
        while not found.is_full and arrived.get(found.whole + 1) == found.room:
            found.whole += 1
        if not found.is_full:
            fragments = await store.writer.list_fragments(place.key)
            found.covered = tuple(covering(fragments, found.whole + 1))
        return found

    @property
    def is_full(self) -> bool:
        """Whether every part has come."""
        return self.whole == len(self.place.part_sizes)

    @property
    def start(self) -> int:
        """Where within the part under way the next byte belongs."""
        return self.covered[-1].end if self.covered else 0

    @property
    def offset(self) -> int:
        """Where within the file the next byte belongs."""
        return sum(self.place.part_sizes[: self.whole]) + self.start

    @property
    def room(self) -> int:
        """How many bytes the part under way lacks."""
        return self.place.part_sizes[self.whole] - self.start

    @property
    def rest(self) -> int:
        """How many bytes the file lacks."""
        return sum(self.place.part_sizes) - self.offset

    async def append(
        self, chunks: AsyncIterator[bytes], checksum: Checksum | None = None
    ) -> ObjectStoreError | None:
        """Take in bytes until they end; return what ended them before their time, if anything.

        With a checksum nothing is kept unless the bytes have it and end as they should; so many
        may be sent as a part may have. Raise PartTooLarge, ChecksumMismatch,
        ObjectStoreUnavailable, NoSuchUpload.
        """
        incoming = _Incoming(chunks)
        if checksum is not None:
            return await self._append_checked(incoming, checksum)
        received = Received(0)
        while not self.is_full and received.broken is None and not incoming.ended:
            with _new_file() as spool:
                received = await incoming.fill(spool, self.room)
                await self._keep(spool, received.size)
        if received.broken is None:
            await incoming.refuse_more()
        return received.broken

    async def _append_checked(
        self, incoming: _Incoming, checksum: Checksum
    ) -> ObjectStoreError | None:
        with _new_file() as spool:
            received = await incoming.fill(spool, min(self.rest, max(self.place.part_sizes)))
            if received.broken is not None:
                return received.broken
            await incoming.refuse_more()
            if await _in_thread(_digest, spool, checksum.header) != checksum.digest:
                told = f"The bytes that came don't match {checksum.header}; send them again."
                raise ChecksumMismatch(told)
            await self._keep(spool, received.size)
        return None

    async def _keep(self, spool: BinaryIO, size: int) -> None:
        """Put `size` bytes of the file into the store, cut where parts end."""
        at = 0
        while at < size:
            count = min(self.room, size - at)
            if count == self.room:
                await self._keep_part(spool, at, count)
            else:
                await self._keep_fragment(spool, at, count)
            at += count

    async def _keep_part(self, spool: BinaryIO, at: int, count: int) -> None:
        place, number, size = self.place, self.whole + 1, self.place.part_sizes[self.whole]
        with ExitStack() as stack:
            source = await self._source(stack, spool, at, count, joined=True)
            writer = self.store.writer
            await writer.write_part(place.key, place.store_upload_id, number, size, source)
        former, self.covered = self.covered, ()
        self.whole += 1
        await self.store.writer.drop_fragments(place.key, former)

    async def _keep_fragment(self, spool: BinaryIO, at: int, count: int) -> None:
        joined = len(self.covered) >= MOST_FRAGMENTS
        start = 0 if joined else self.start
        fragment = Fragment(self.whole + 1, start, self.start + count - start)
        with ExitStack() as stack:
            source = await self._source(stack, spool, at, count, joined=joined)
            await self.store.writer.write_fragment(self.place.key, fragment, source)
        former = self.covered if joined else ()
        self.covered = (*(() if joined else self.covered), fragment)
        await self.store.writer.drop_fragments(self.place.key, former)

    async def _source(
        self, stack: ExitStack, spool: BinaryIO, at: int, count: int, *, joined: bool
    ) -> BinaryIO:
        """Return a file that is what came, after what the part has already where `joined`."""
        before = self.covered if joined else ()
        if at == 0 and not before and await _in_thread(_size, spool) == count:
            await _in_thread(spool.seek, 0)
            return spool
        source = stack.enter_context(_new_file())
        for fragment in before:
            await _in_thread(source.seek, fragment.start)
            await self.store.writer.read_fragment(self.place.key, fragment, source)
        await _in_thread(_copy, spool, at, count, source)
        return source


class _Incoming:
    """Chunks as they come, cut where a file is full; what is left of one is for the next."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""
        self.ended = False

    async def fill(self, spool: BinaryIO, most: int) -> Received:
        """Write at most `most` bytes into the file, and return how many came."""
        taken, block, held = 0, list[bytes](), 0
        broken: ObjectStoreError | None = None
        while taken + held < most and not self.ended and broken is None:
            try:
                chunk = await self._next(most - taken - held)
            except (PartCutOff, PartStalled) as error:
                broken = error
                break
            block.append(chunk)
            held += len(chunk)
            if held >= BLOCK_BYTES:
                await _in_thread(spool.writelines, block)
                taken, block, held = taken + held, [], 0
        await _in_thread(spool.writelines, block)
        return Received(taken + held, broken)

    async def refuse_more(self) -> None:
        """Raise PartTooLarge where more comes."""
        while not self.ended:
            if await self._next(1):
                raise PartTooLarge("More bytes came than this request may send.")

    async def _next(self, most: int) -> bytes:
        try:
            chunk = self._left or await anext(self._chunks)
        except StopAsyncIteration:
            self.ended = True
            return b""
        self._left = chunk[most:]
        return chunk[:most]


def _new_file() -> BinaryIO:
    """Return an unnamed temporary file. Raise ObjectStoreUnavailable."""
    try:
        return TemporaryFile()
    except OSError as error:
        raise _no_room(error) from error


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    """Do work on a temporary file. Raise ObjectStoreUnavailable for an OSError."""
    try:
        return await to_thread.run_sync(work, *args)
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> ObjectStoreUnavailable:
    OBJECT_STORE_FAILURES.inc()
    log.error("temporary_folder_unusable", reason=str(error))
    return ObjectStoreUnavailable(f"The folder of temporary files can't be used: {error}.")


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _digest(file: BinaryIO, header: str) -> bytes:
    hashing = ALGORITHMS[header]()
    file.seek(0)
    while block := file.read(COPY_BYTES):
        hashing.update(block)
    return hashing.digest()


def _copy(source: BinaryIO, at: int, count: int, target: BinaryIO) -> None:
    """Append `count` bytes of a file to another one, which then stands at its beginning."""
    source.seek(at)
    target.seek(0, 2)
    while count and (block := source.read(min(count, COPY_BYTES))):
        target.write(block)
        count -= len(block)
    target.seek(0)
