"""From a file to a video: begins an upload or goes on with one, and remembers it meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import httpx

from backlot.calls import CallFailed
from backlot.screen import BYTES, Screen
from backlot.upload.api import Details, UploadApi
from backlot.upload.file import LocalFile
from backlot.upload.memory import Begun, Memory
from backlot.upload.problems import FileChanged, UploadEnded, UploadFailed
from backlot.upload.transfer import Transfer, TransferPlan
from commands.upload_shapes import UploadCompleted
from infra.contract import UploadStatus

ENDED = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT})


@dataclass(frozen=True)
class Wishes:
    """What the user said about the video, and what was made up for the rest.

    Both by their names in the API: `title`, `description`, `category`, `contentType`.
    """

    named: Mapping[str, str]
    assumed: Mapping[str, str]


@dataclass(frozen=True)
class Uploaded:
    """A completed upload; `parts_sent` are those of this run."""

    video: UploadCompleted
    parts: int
    parts_sent: int
    resumed: bool


class UploadSession:
    """One run of the client, for one file. `under_way`: parts of it may have arrived."""

    def __init__(
        self, api: UploadApi, file: LocalFile, memory: Memory, screen: Screen, *, parallel: int = 4
    ) -> None:
        self._api, self._file, self._memory, self._screen = api, file, memory, screen
        self._parallel = parallel
        self.under_way = False

    async def run(self, wishes: Wishes, *, resume: bool = True) -> Uploaded:
        """Upload the file.

        Raises UploadFailed, and CallFailed; then what has arrived is remembered.
        """
        begun = self._memory.recall()
        if begun is not None and begun.upload_id is not None:
            if not resume:
                await self._give_up(begun.upload_id)
            elif status := await self._find(begun, begun.upload_id, wishes.named):
                return await self._go_on(status)
            begun = None
        details: Details = {
            "filename": self._file.name,
            "sizeBytes": self._file.size,
            **wishes.assumed,
            **wishes.named,
        }
        if begun is None or begun.details != details or not resume:
            begun = Begun.now(details)
        return await self._transfer(await self._begin(begun), resumed=False)

    async def _find(
        self, begun: Begun, upload_id: UUID, named: Mapping[str, str]
    ) -> UploadStatus | None:
        """The remembered upload, if it is under way or done."""
        self._api.position = begun.position
        status = await self._api.status(upload_id)
        if status is None or status.status not in ("started", "completed"):
            told = status.status if status else "unknown to the server"
            self._screen.say(f"the earlier upload is {told}: beginning anew")
            return None
        for name, wish in named.items():
            if (other := begun.details.get(name, "")) != wish:
                raise UploadFailed(
                    f"the unfinished upload of {self._file.path} has the {name} {other!r}: leave "
                    "yours out to resume it, or begin anew with --no-resume"
                )
        return status

    async def _go_on(self, status: UploadStatus) -> Uploaded:
        plan = TransferPlan.resumed(status)
        if status.status == "completed":
            self._screen.say("an earlier run came as far as completing it")
            video = await self._api.complete(plan.upload_id, [])
            self._memory.forget()
            return Uploaded(video, plan.part_count, 0, resumed=True)
        self._screen.say(f"resuming: {len(plan.arrived)} of {plan.part_count} parts have arrived")
        return await self._transfer(plan, resumed=True)

    async def _begin(self, begun: Begun) -> TransferPlan:
        """Remembered before it is asked for, so that a crash begins no second upload."""
        self._memory.remember(begun)
        try:
            started = await self._api.start(begun.details, begun.key)
        except CallFailed as failure:
            if failure.status is not None and not failure.passing:
                self._memory.forget()
            raise
        known = {"upload_id": started.upload_id, "position": self._api.position}
        self._memory.remember(begun.model_copy(update=known))
        return TransferPlan.begun(started, self._file.size)

    async def _transfer(self, plan: TransferPlan, *, resumed: bool) -> Uploaded:
        self.under_way = True
        with self._screen.act("uploading", plan.size, BYTES) as act:
            transfer = Transfer(
                self._api, self._file, plan, parallel=self._parallel, progress=act.advance
            )
            try:
                video = await transfer.run()
            except FileChanged:
                await self._give_up(plan.upload_id)
                raise
            except CallFailed as failure:
                video = await self._look_again(plan.upload_id, failure)
        self._memory.forget()
        return Uploaded(video, plan.part_count, transfer.parts_sent, resumed)

    async def _look_again(self, upload_id: UUID, failure: CallFailed) -> UploadCompleted:
        """What another run made of the upload meanwhile; raises the failure if nothing."""
        if failure.status not in ENDED:
            raise failure
        status = await self._api.status(upload_id)
        if status is not None and status.status == "started":
            raise failure
        if status is not None and status.status == "completed":
            return await self._api.complete(upload_id, [])
        self._memory.forget()
        told = status.status if status else "removed"
        raise UploadEnded(
            f"the upload was {told} meanwhile: run the same command again to begin anew"
        ) from failure

    async def _give_up(self, upload_id: UUID) -> None:
        """What nobody will go on with need not be kept by the server."""
        self._memory.forget()
        try:
            await self._api.abort(upload_id)
        except CallFailed as failure:
            self._screen.say(f"the earlier upload could not be given up: {failure}")
