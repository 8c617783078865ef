"""An upload begun beside the server that its parts are sent to, on the same folder."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import anyio

from infra.objects.folder import FolderStore
from infra.objects.port import Part
from tests.integration.object_server import folder_store


class Sending:
    """The upload as the store sees it."""

    def __init__(self, store: FolderStore, root: Path, upload_id: str, key: str) -> None:
        self.store, self.root, self.id, self.key = store, root, upload_id, key

    def url(self, size: int, base_url: str, number: int = 1) -> str:
        return self.store.part_url(self.key, self.id, number, size, base_url).url

    def parts(self) -> list[Part]:
        return anyio.run(self.store.list_parts, self.key, self.id)

    def abort(self) -> None:
        anyio.run(self.store.abort, self.key, self.id)

    def spools(self) -> list[Path]:
        return list((self.root / "tmp").iterdir())

    def kept(self) -> bool:
        """Whether anything of any part is there, complete or not."""
        return bool(self.parts() or self.spools())


def sending(root: Path) -> Sending:
    store, key = folder_store(root), f"videos/{uuid4()}"
    return Sending(store, root, anyio.run(store.begin, key), key)
