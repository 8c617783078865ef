"""Uploads on the brink of completion, and what has to be true of them after whatever happened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from domain.upload import Upload
from infra.data_folder import objects_path
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.recorded import Recorded
from tests.e2e.videos import MP4, read, send_parts, start

RETRY_SECONDS = 0.1
PATIENCE_SECONDS = 180.0
LATER = {"upload-finalizing": 409, "locks-unavailable": 503, "store-unavailable": 503}


@dataclass
class Brink:
    """One upload of one owner, all parts sent."""

    owner: httpx.Client
    upload_id: str
    content: bytes = field(repr=False, default=MP4)

    @property
    def path(self) -> str:
        return f"/uploads/{self.upload_id}"

    def complete(self, **headers: str) -> httpx.Response:
        return self.owner.post(f"{self.path}/complete", headers=headers)

    def complete_at_last(self) -> dict[str, Any]:
        """The answer, after as many polite refusals as it takes."""
        return read(insist(self.complete))

    def played(self) -> bytes:
        url = read(self.owner.post(f"/videos/{self.upload_id}/watch"))["url"]
        return plain.get(url).content


def on_the_brink(program: Program, content: bytes = MP4, user: str = "owner") -> Brink:
    """A new upload that only has to be completed."""
    client = program.client(user)
    started = start(client, content)
    send_parts(started, content)
    return Brink(client, started["uploadId"], content)


def insist(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until the answer is another one than "later"; each of those has to say when."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_later(answer := ask()):
        assert time.monotonic() < deadline, answer.text
        time.sleep(RETRY_SECONDS)
    return answer


def is_later(answer: httpx.Response) -> bool:
    """Whether this is a clean refusal that asks to come again."""
    if answer.is_success:
        return False
    slug = answer.json()["type"]
    if slug not in LATER:
        return False
    assert answer.status_code == LATER[slug]
    assert int(answer.headers["Retry-After"]) >= 1
    return True


def ends(program: Program, upload_id: str) -> Counter[str]:
    """How often the upload was ended in each way, as the log has it."""
    kinds = (Upload.Completed, Upload.Aborted, Upload.Expired)
    return Counter(
        type(event).__name__
        for event in Recorded.of(program).events
        if str(event.originator_id) == upload_id and isinstance(event, kinds)
    )


def lying_in_folder(program: Program, upload_id: str) -> tuple[int, int]:
    """How many objects the folder store has for this upload, and how many unfinished uploads."""
    root = objects_path(program.data)
    objects = root / "objects" / "videos" / upload_id
    whole = len(list(objects.iterdir())) if objects.exists() else 0
    return whole, len(list((root / "uploads").glob(f"videos_{upload_id}_*")))
