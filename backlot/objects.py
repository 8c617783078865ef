"""Chooses where media objects lie; nothing else asks whether it is the folder or S3."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fastapi import APIRouter

import commands.objects
import readapi.objects
from infra.data_folder import DataFolder
from infra.errors import OperatorError
from infra.objects import FolderStore, ObjectStore, ObjectStoreUnavailable
from infra.settings import Role, Settings

if TYPE_CHECKING:
    from infra.objects.s3 import S3Store


def open_objects(
    settings: Settings, folder: DataFolder, secret: str, stack: ExitStack
) -> ObjectStore:
    """The store of these settings, ready for this process's roles; `stack` closes it.

    Raises OperatorError with one clear line when the folder or the bucket is of no use.
    """
    if settings.s3_bucket is None:
        return _open_folder(settings, folder, secret)
    store = make_s3(settings)
    stack.callback(store.close)
    if settings.roles != {Role.PROJECTIONS}:
        try:
            store.probe()
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store


def make_s3(settings: Settings) -> S3Store:
    """The store of the S3_* settings; calls nobody yet. Raises OperatorError without credentials.

    `close` it.
    """
    # boto3 takes a quarter of a second to import.
    from infra.objects.s3 import S3Store
    from infra.objects.s3_client import S3Place

    secret = settings.s3_secret_access_key
    place = S3Place(
        bucket=settings.s3_bucket or "",
        endpoint_url=settings.s3_endpoint_url,
        public_endpoint_url=settings.s3_public_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        addressing_style=settings.s3_addressing_style,
    )
    return S3Store(place, _url_ttl(settings), _now)


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
    store = FolderStore(folder.objects, secret.encode(), _url_ttl(settings), _now)
    if Role.COMMANDS in settings.roles:
        # Only the process that takes uploads may sweep up what a crash left of them.
        try:
            asyncio.run(store.recover())
        except ObjectStoreUnavailable as error:
            raise OperatorError(error.cause) from error
    return store


def _url_ttl(settings: Settings) -> timedelta:
    return timedelta(seconds=settings.url_ttl_seconds)


def _now() -> datetime:
    return datetime.now(UTC)
