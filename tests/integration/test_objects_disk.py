"""The folder store on a folder that somebody meddled with, or that can't be written."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import pytest

from infra import metrics
from infra.objects.port import ObjectStoreUnavailable
from tests.integration.object_server import folder_store

pytestmark = pytest.mark.anyio
KEY = f"videos/{uuid4()}"
NOBODY = 65534


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_foreign_files_are_no_parts_and_no_objects(
    tmp_path: Path,
) -> None:
    store = folder_store(tmp_path)
    await store.recover()
    upload = await store.begin(KEY)
    [upload_folder] = (tmp_path / "uploads").iterdir()
    (upload_folder / "notes.txt").write_text("mine")
    (upload_folder / f"00001-1-{md5(b'').hexdigest()}-0").symlink_to("/etc/passwd")
    (tmp_path / "objects" / KEY).mkdir(parents=True)
    (tmp_path / "objects" / KEY / ("0" * 32 + "-1")).symlink_to("/etc/passwd")
    assert await store.list_parts(KEY, upload) == []
    assert await store.head(KEY) is None


@pytest.mark.parametrize("area", ["uploads", "objects", "objects/videos", "tmp"])
async def test_no_link_leads_out_of_the_folder(tmp_path: Path, area: str) -> None:
    outside = tmp_path / "outside"
    (outside / "videos" / KEY.removeprefix("videos/")).mkdir(parents=True)
    root = tmp_path / "root"
    (root / area).parent.mkdir(parents=True)
    (root / area).symlink_to(outside)
    store = folder_store(root)
    with pytest.raises(ObjectStoreUnavailable, match="unavailable") as caught:
        await store.check()
    assert "symbolic link" in caught.value.cause
    with pytest.raises(ObjectStoreUnavailable):
        await store.put_part(KEY, await store.begin(KEY), 1, 1, once(b"x"))
    assert [path for path in outside.rglob("*") if path.is_file()] == []


async def test_an_unwritable_folder_is_told_plainly() -> None:
    with readable_only() as root:
        failures = metrics.value("backlot_object_store_failures_total")
        for attempt in (folder_store(root).check, folder_store(root).recover):
            with pytest.raises(ObjectStoreUnavailable) as caught:
                await attempt()
            assert caught.value.cause == (
                f"The object folder {root} can't be used: "
                "it is not writable: check its owner and mode."
            )
            assert str(root) not in str(caught.value)
        with pytest.raises(ObjectStoreUnavailable):
            await folder_store(root).begin(KEY)
        assert metrics.value("backlot_object_store_failures_total") == failures + 3


async def test_a_file_in_the_folders_place_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ObjectStoreUnavailable) as caught:
        await folder_store(tmp_path / "taken").check()
    assert "not a folder" in caught.value.cause


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@contextmanager
def readable_only() -> Iterator[Path]:
    """A folder that this process may read only; root becomes nobody for the while."""
    # Not under tmp_path: only its owner may pass that.
    root = Path(gettempdir()) / f"backlot-readable-{uuid4().hex}"
    root.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield root
    finally:
        os.seteuid(user)
        root.chmod(0o755)
        root.rmdir()
