"""One upload into any object store, as tests drive it."""

from __future__ import annotations

from hashlib import md5

import httpx

from infra.objects.port import ObjectStore, Part, PartRef, StoredObject


def ref(number: int, content: bytes) -> PartRef:
    """How a client names a part that it sent."""
    return PartRef(number, md5(content).hexdigest())


def etag_of(*parts: bytes) -> str:
    """The multipart ETag, computed apart from the code under test."""
    digests = b"".join(md5(part).digest() for part in parts)
    return f"{md5(digests).hexdigest()}-{len(parts)}"


class Upload:
    """One upload as a client and the command side see it together."""

    def __init__(self, store: ObjectStore, key: str, base_url: str, client: httpx.Client) -> None:
        self.store, self.key = store, key
        self.id = ""
        self._base_url, self._client = base_url, client

    async def begin(self) -> None:
        self.id = await self.store.begin(self.key)

    def part_url(self, number: int, size: int) -> str:
        return self.store.part_url(self.key, self.id, number, size, self._base_url).url

    def put(self, number: int, content: bytes) -> httpx.Response:
        return self._client.put(self.part_url(number, len(content)), content=content)

    async def send(self, parts: dict[int, bytes]) -> dict[int, str]:
        """Send the parts in the order given; their ETags as they came in the header."""
        etags = {}
        for number, content in parts.items():
            answer = self.put(number, content)
            assert answer.status_code == 200, answer.text
            etags[number] = answer.headers["etag"]
        return etags

    async def parts(self) -> list[Part]:
        return await self.store.list_parts(self.key, self.id)

    async def complete(self, *named: PartRef) -> StoredObject:
        return await self.store.complete(self.key, self.id, named)

    async def abort(self) -> None:
        await self.store.abort(self.key, self.id)

    def get(self, headers: dict[str, str] | None = None) -> httpx.Response:
        url = self.store.get_url(self.key, "video/mp4", "clip.mp4", self._base_url).url
        return self._client.get(url, headers=headers)

    def content(self) -> bytes:
        answer = self.get()
        assert answer.status_code == 200, answer.text
        return answer.content
