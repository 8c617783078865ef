"""What every object store must do, whoever keeps the bytes; run once per implementation.

Parts go in and objects come out over HTTP, through signed URLs, as for a client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import md5
from io import BytesIO
from uuid import UUID, uuid4

import httpx
import pytest

from infra.objects.fragments import Fragment
from infra.objects.port import (
    InvalidKey,
    NoSuchUpload,
    ObjectStore,
    OpenUpload,
    Part,
    PartMismatch,
    PartRef,
    StoredObject,
)
from tests.integration.object_upload import Upload, etag_of, ref
from tests.support import DEADLINE_SECONDS

# The smallest size that S3 takes for any part but the last.
FIRST = b"first " * (5 * 1024 * 1024 // 6 + 1)
LAST = b"and last"

# Always the same one: names of tests have to be equal in all processes that run them.
ODD = UUID("0d11e5f0-6b1c-4c7e-9d6a-3f2f7a1c9b58")
ODD_KEYS = [
    "",
    "videos/",
    "videos/../secret",
    "/etc/passwd",
    "videos/%2e%2e",
    f"other/{ODD}",
    f"videos/{ODD}/more",
    f"videos/{ODD}\n",
    f"videos/{ODD}".upper(),
    f"videos/{ODD.hex}",
    "videos/" + "é" * 36,
]


class ObjectStoreContract:
    """Subclasses give `store` and `base_url`, where the store's URLs lead."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def store(self) -> ObjectStore:
        raise NotImplementedError

    @pytest.fixture
    def base_url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def key(self) -> str:
        return f"videos/{uuid4()}"

    @pytest.fixture
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(timeout=DEADLINE_SECONDS) as client:
            yield client

    @pytest.fixture
    def upload(self, store: ObjectStore, key: str, base_url: str, client: httpx.Client) -> Upload:
        return Upload(store, key, base_url, client)

    async def test_parts_become_one_object(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: FIRST, 2: LAST})
        expected = StoredObject(upload.key, len(FIRST + LAST), etag_of(FIRST, LAST))
        assert await upload.complete(ref(1, FIRST), ref(2, LAST)) == expected
        assert await upload.store.head(upload.key) == expected
        assert upload.content() == FIRST + LAST

    async def test_parts_are_joined_by_number_however_named(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({10: LAST, 2: FIRST})
        stored = await upload.complete(ref(10, LAST), ref(2, FIRST))
        assert stored.etag == etag_of(FIRST, LAST)
        assert upload.content() == FIRST + LAST

    async def test_an_etag_may_keep_its_quotes(self, upload: Upload) -> None:
        await upload.begin()
        etags = await upload.send({1: LAST})
        assert etags == {1: f'"{md5(LAST).hexdigest()}"'}
        assert (await upload.complete(PartRef(1, etags[1]))).etag == etag_of(LAST)

    async def test_arrived_parts_are_listed_by_number(self, upload: Upload) -> None:
        await upload.begin()
        assert await upload.parts() == []
        await upload.send({3: LAST, 1: b"one"})
        assert await upload.parts() == [
            Part(1, md5(b"one").hexdigest(), 3),
            Part(3, md5(LAST).hexdigest(), len(LAST)),
        ]

    async def test_a_part_sent_again_takes_the_place_of_the_first(self, upload: Upload) -> None:
        await upload.begin()
        for content in (b"a wrong one", LAST, LAST):
            await upload.send({1: content})
        assert await upload.parts() == [Part(1, md5(LAST).hexdigest(), len(LAST))]
        await upload.complete(ref(1, LAST))
        assert upload.content() == LAST

    async def test_completing_again_gives_the_same_answer(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        first = await upload.complete(ref(1, LAST))
        assert await upload.complete(ref(1, LAST)) == first
        with pytest.raises(NoSuchUpload):
            await upload.parts()

    async def test_many_completions_at_once_make_one_object(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: FIRST, 2: LAST})
        completions = (upload.complete(ref(1, FIRST), ref(2, LAST)) for _ in range(8))
        answers = await asyncio.gather(*completions)
        assert set(answers) == {await upload.store.head(upload.key)}
        assert upload.content() == FIRST + LAST

    async def test_a_mismatch_names_the_parts_and_changes_nothing(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: FIRST, 2: LAST})
        with pytest.raises(PartMismatch) as caught:
            await upload.complete(ref(1, FIRST), ref(2, b"other"), ref(3, LAST))
        assert (caught.value.missing, caught.value.wrong) == ((3,), (2,))
        assert await upload.store.head(upload.key) is None
        assert (await upload.complete(ref(1, FIRST), ref(2, LAST))).etag == etag_of(FIRST, LAST)

    @pytest.mark.parametrize(
        "named", [[], [ref(1, LAST), ref(1, LAST)], [PartRef(1, "not an etag")]]
    )
    async def test_senseless_part_lists_are_refused(
        self, upload: Upload, named: list[PartRef]
    ) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        with pytest.raises(PartMismatch):
            await upload.complete(*named)
        assert len(await upload.parts()) == 1

    async def test_parts_left_out_are_dropped(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: b"not wanted", 2: LAST})
        assert (await upload.complete(ref(2, LAST))).size == len(LAST)
        assert upload.content() == LAST

    async def test_an_aborted_upload_is_gone(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        for _ in range(2):
            await upload.abort()
        with pytest.raises(NoSuchUpload):
            await upload.parts()
        with pytest.raises(NoSuchUpload):
            await upload.complete(ref(1, LAST))
        assert upload.put(1, LAST).status_code == 404

    async def test_an_abort_too_late_leaves_the_object(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        await upload.complete(ref(1, LAST))
        await upload.abort()
        assert upload.content() == LAST

    async def test_a_deleted_object_is_gone(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        await upload.complete(ref(1, LAST))
        for _ in range(2):
            await upload.store.delete(upload.key)
        assert await upload.store.head(upload.key) is None
        assert upload.get().status_code == 404

    async def test_what_was_never_begun_is_unknown(self, store: ObjectStore, key: str) -> None:
        for unknown in ("0" * 32, "../../etc", ""):
            with pytest.raises(NoSuchUpload):
                await store.list_parts(key, unknown)
            with pytest.raises(NoSuchUpload):
                await store.complete(key, unknown, [ref(1, LAST)])
            await store.abort(key, unknown)
        assert await store.head(key) is None
        await store.delete(key)

    async def test_uploads_of_one_key_stay_apart(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: b"the first try"})
        await upload.begin()
        assert await upload.parts() == []

    async def test_the_latest_arrival_is_known(self, upload: Upload) -> None:
        await upload.begin()
        assert await upload.store.last_arrival(upload.key, upload.id) is None
        await upload.send({1: LAST})
        arrived = await upload.store.last_arrival(upload.key, upload.id)
        assert arrived is not None
        assert abs(datetime.now(UTC) - arrived) < timedelta(seconds=10)
        await upload.abort()
        with pytest.raises(NoSuchUpload):
            await upload.store.last_arrival(upload.key, upload.id)

    async def test_uploads_under_way_are_listed_by_age(self, upload: Upload) -> None:
        await upload.begin()
        begun = OpenUpload(upload.key, upload.id)
        soon = datetime.now(UTC) + timedelta(minutes=1)
        assert begun in await upload.store.list_uploads(soon)
        assert begun not in await upload.store.list_uploads(soon - timedelta(minutes=2))
        await upload.send({1: LAST})
        await upload.complete(ref(1, LAST))
        assert begun not in await upload.store.list_uploads(soon)

    async def test_an_object_plays_in_ranges_under_its_name(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: LAST})
        await upload.complete(ref(1, LAST))
        answer = upload.get({"Range": "bytes=4-7"})
        assert (answer.status_code, answer.content) == (206, LAST[4:8])
        assert answer.headers["content-range"] == f"bytes 4-7/{len(LAST)}"
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-disposition"].startswith("inline; filename")

    async def test_a_part_of_the_program_is_as_one_of_a_client(self, upload: Upload) -> None:
        await upload.begin()
        await upload.send({1: FIRST})
        arrived = await upload.store.writer.write_part(
            upload.key, upload.id, 2, len(LAST), BytesIO(LAST)
        )
        assert arrived == Part(2, md5(LAST).hexdigest(), len(LAST))
        await upload.complete(ref(1, FIRST), ref(2, LAST))
        assert upload.content() == FIRST + LAST
        with pytest.raises(NoSuchUpload):
            await upload.store.writer.write_part(upload.key, "0" * 32, 1, len(LAST), BytesIO(LAST))

    async def test_fragments_are_kept_until_they_are_dropped(
        self, store: ObjectStore, key: str
    ) -> None:
        writer, first, second = store.writer, Fragment(2, 0, 4), Fragment(2, 4, 3)
        assert await writer.list_fragments(key) == []
        assert await writer.last_fragment(key) is None
        for fragment, content in ((first, b"0123"), (second, b"456"), (second, b"456")):
            await writer.write_fragment(key, fragment, BytesIO(content))
        assert set(await writer.list_fragments(key)) == {first, second}
        found = BytesIO(b"__")
        found.seek(2)
        await writer.read_fragment(key, first, found)
        assert found.getvalue() == b"__0123"
        latest = await writer.last_fragment(key)
        assert latest is not None
        assert abs(datetime.now(UTC) - latest) < timedelta(seconds=DEADLINE_SECONDS)
        # Of other uploads nothing is seen, and nothing is dropped twice.
        assert await writer.list_fragments(f"videos/{uuid4()}") == []
        for _ in range(2):
            await writer.drop_fragments(key, [first])
        assert await writer.list_fragments(key) == [second]

    async def test_old_fragments_are_swept(self, store: ObjectStore, key: str) -> None:
        await store.writer.write_fragment(key, Fragment(1, 0, 2), BytesIO(b"01"))
        soon = datetime.now(UTC) + timedelta(minutes=1)
        assert await store.writer.sweep_fragments(soon - timedelta(days=1)) == 0
        assert await store.writer.list_fragments(key) == [Fragment(1, 0, 2)]
        assert await store.writer.sweep_fragments(soon) >= 1
        assert await store.writer.list_fragments(key) == []

    @pytest.mark.parametrize("odd", ODD_KEYS)
    async def test_other_keys_are_refused(self, store: ObjectStore, odd: str) -> None:
        with pytest.raises(InvalidKey):
            await store.begin(odd)
        with pytest.raises(InvalidKey):
            await store.head(odd)
        with pytest.raises(InvalidKey):
            await store.delete(odd)
        with pytest.raises(InvalidKey):
            store.get_url(odd, "video/mp4", "a.mp4", "http://here")
        with pytest.raises(InvalidKey):
            store.part_url(odd, "0" * 32, 1, 1, "http://here")
        with pytest.raises(InvalidKey):
            await store.writer.write_fragment(odd, Fragment(1, 0, 1), BytesIO(b"0"))
        with pytest.raises(InvalidKey):
            await store.writer.list_fragments(odd)

    @pytest.mark.parametrize(("number", "size"), [(0, 1), (-1, 1), (10_001, 1), (1, -1)])
    async def test_impossible_parts_get_no_url(
        self, store: ObjectStore, key: str, number: int, size: int
    ) -> None:
        with pytest.raises(InvalidKey):
            store.part_url(key, "0" * 32, number, size, "http://here")

    async def test_a_working_store_says_so(self, store: ObjectStore) -> None:
        await store.check()
