"""Chooses where media objects lie; nothing else asks whether it is the folder or S3."""

from __future__ import annotations

from contextlib import ExitStack

from fastapi import APIRouter

import commands.objects
import readapi.objects
from backlot.signals import run
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.objects import FolderStore, ObjectStore, ObjectStoreUnavailable
from infra.objects.choosing import make_s3, now
from infra.settings import Role, Settings


def open_objects(
    settings: Settings, folder: DataFolder, secret: str, stack: ExitStack
) -> ObjectStore:
    """The store of these settings, ready for this process's roles; `stack` closes it.

    Raises OperatorError with one clear line when the folder or the bucket is of no use.
    """
    if settings.objects.bucket is None:
        return _open_folder(settings, folder, secret)
    store = make_s3(settings.objects)
    stack.callback(store.close)
    if settings.server.roles != {Role.PROJECTIONS}:
        try:
            store.probe()
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store


def object_routers(store: ObjectStore, roles: frozenset[Role]) -> list[APIRouter]:
    """Routes that move bytes; there are none when clients talk to S3 itself."""
    if not isinstance(store, FolderStore):
        return []
    routers = []
    if Role.COMMANDS in roles:
        routers.append(commands.objects.router(store))
    if Role.QUERIES in roles:
        routers.append(readapi.objects.router(store))
    return routers


def _open_folder(settings: Settings, folder: DataFolder, secret: str) -> FolderStore:
    store = FolderStore(folder.objects, secret.encode(), settings.objects.url_ttl, now)
    if Role.COMMANDS in settings.server.roles:
        # Only the process that takes uploads may sweep up what a crash left of them.
        try:
            run(store.recover())
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store
