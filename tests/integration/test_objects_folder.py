"""The folder under the object store: the port's contract, crashes, races, links and sick disks."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anyio import from_thread

from infra.objects import disk, folder
from infra.objects.folder import FolderStore
from infra.objects.port import NoSuchUpload, Part, PartMismatch, PartRef
from tests.integration.object_server import ObjectServer, folder_store, object_server
from tests.integration.object_store_contract import ObjectStoreContract
from tests.integration.object_upload import ref

pytestmark = pytest.mark.anyio
KEY = f"videos/{uuid4()}"
NOBODY = 65534


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ObjectServer]]:
    root = tmp_path_factory.mktemp("served")
    with object_server(root) as server:
        yield root, server


class TestFolderStore(ObjectStoreContract):
    @pytest.fixture
    def store(self, served: tuple[Path, ObjectServer]) -> FolderStore:
        return folder_store(served[0])

    @pytest.fixture
    def base_url(self, served: tuple[Path, ObjectServer]) -> str:
        return served[1].url


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def put(store: FolderStore, upload: str, number: int, content: bytes) -> Part:
    return await store.put_part(KEY, upload, number, len(content), once(content))


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
async def store(tmp_path: Path) -> FolderStore:
    store = folder_store(tmp_path)
    await store.recover()
    return store


async def test_an_upload_goes_on_after_a_restart(store: FolderStore, tmp_path: Path) -> None:
    upload = await store.begin(KEY)
    first = await put(store, upload, 1, b"before ")
    restarted = folder_store(tmp_path)
    await restarted.recover()
    assert await restarted.list_parts(KEY, upload) == [first]
    await put(restarted, upload, 2, b"after")
    await restarted.complete(KEY, upload, [ref(1, b"before "), ref(2, b"after")])
    found = await restarted.find(KEY)
    assert found is not None
    assert found.path.read_bytes() == b"before after"


async def test_a_completion_is_answered_after_its_parts_are_gone(
    store: FolderStore, tmp_path: Path
) -> None:
    upload = await store.begin(KEY)
    await put(store, upload, 1, b"all")
    first = await store.complete(KEY, upload, [ref(1, b"all")])
    assert files(tmp_path) == [f"objects/{KEY}/{first.etag}"]
    assert await folder_store(tmp_path).complete(KEY, upload, [ref(1, b"all")]) == first
    with pytest.raises(PartMismatch):
        await store.complete(KEY, upload, [ref(1, b"other")])


async def test_a_restart_removes_what_a_crash_left(store: FolderStore, tmp_path: Path) -> None:
    upload = await store.begin(KEY)
    await put(store, upload, 1, b"all")
    half = tmp_path / "tmp" / "half-joined"
    half.mkdir()
    (half / "bytes").write_bytes(b"half")
    (tmp_path / "tmp" / "half-a-part").write_bytes(b"half")
    # As if the process had died between publishing the object and dropping its parts.
    shutil.copytree(tmp_path / "uploads", tmp_path / "kept")
    stored = await store.complete(KEY, upload, [ref(1, b"all")])
    shutil.rmtree(tmp_path / "uploads")
    (tmp_path / "kept").rename(tmp_path / "uploads")
    await folder_store(tmp_path).recover()
    assert files(tmp_path) == [f"objects/{KEY}/{stored.etag}"]
    assert list((tmp_path / "tmp").iterdir()) == list((tmp_path / "uploads").iterdir()) == []


async def test_nothing_more_comes_in_once_the_object_stands(store: FolderStore) -> None:
    upload = await store.begin(KEY)
    await put(store, upload, 1, b"all")
    await store.complete(KEY, upload, [ref(1, b"all")])
    with pytest.raises(NoSuchUpload):
        await put(store, upload, 2, b"more")


async def test_an_upload_aborted_while_a_part_arrives_stays_gone(
    store: FolderStore, tmp_path: Path
) -> None:
    upload = await store.begin(KEY)

    async def aborted_meanwhile() -> AsyncIterator[bytes]:
        await store.abort(KEY, upload)
        yield b"late"

    with pytest.raises(NoSuchUpload):
        await store.put_part(KEY, upload, 1, 4, aborted_meanwhile())
    assert files(tmp_path) == []


async def test_the_same_part_sent_many_times_at_once_is_kept_once(
    store: FolderStore, tmp_path: Path
) -> None:
    upload = await store.begin(KEY)
    contents = [f"try {n}".encode() for n in range(20)]
    sent = await asyncio.gather(*(put(store, upload, 1, content) for content in contents))
    [part] = await store.list_parts(KEY, upload)
    assert part in sent
    assert len(files(tmp_path)) == 1
    await store.complete(KEY, upload, [PartRef(1, part.etag)])


@pytest.mark.parametrize("event", ["abort", "other completion", "part sent again"])
async def test_what_happens_while_parts_are_joined(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    upload = await store.begin(KEY)
    await put(store, upload, 1, b"all")
    other = folder_store(tmp_path)

    async def meanwhile() -> None:
        if event == "abort":
            await other.abort(KEY, upload)
        elif event == "other completion":
            await other.complete(KEY, upload, [ref(1, b"all")])
        else:
            await put(other, upload, 1, b"new")

    def interrupted(*arguments: Any) -> None:
        monkeypatch.setattr(folder, "join_files", disk.join_files)
        from_thread.run(meanwhile)
        disk.join_files(*arguments)

    monkeypatch.setattr(folder, "join_files", interrupted)
    completion = store.complete(KEY, upload, [ref(1, b"all")])
    if event == "other completion":
        assert await completion == await store.head(KEY)
        return
    with pytest.raises(NoSuchUpload if event == "abort" else PartMismatch):
        await completion
    assert await store.head(KEY) is None


async def test_a_part_damaged_on_the_disk_is_asked_for_again(
    store: FolderStore, tmp_path: Path
) -> None:
    upload = await store.begin(KEY)
    await put(store, upload, 1, b"whole")
    [name] = files(tmp_path)
    (tmp_path / name).write_bytes(b"who")
    with pytest.raises(PartMismatch) as caught:
        await store.complete(KEY, upload, [ref(1, b"whole")])
    assert caught.value.wrong == (1,)
    await put(store, upload, 1, b"whole")
    assert (await store.complete(KEY, upload, [ref(1, b"whole")])).size == 5


async def test_parts_are_joined_where_the_kernel_cannot_copy(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EXDEV, "between file systems")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    upload = await store.begin(KEY)
    contents = [b"1" * 1_500_000, b"", b"3"]
    for number, content in enumerate(contents, start=1):
        await put(store, upload, number, content)
    await store.complete(KEY, upload, [ref(n, c) for n, c in enumerate(contents, start=1)])
    found = await store.find(KEY)
    assert found is not None
    assert found.path.read_bytes() == b"".join(contents)
