"""What proves a chain from outside the database: signatures over its seals, anchors, time stamps.

Who can rewrite the log has neither the private key nor the places where anchors lie.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from engine.seals.anchors import Anchor, AnchorStore, BucketAnchors, FileAnchors, HeadFile
from engine.seals.chain import Seal
from engine.seals.forgotten_list import ForgottenList
from engine.seals.outside import NOTHING, SEAL_FAILURES, Outside
from engine.seals.places import LineFile, LinePlace, LockedObjects
from infra.data_folder import forgotten_path, seal_head_path
from infra.errors import OperatorError
from infra.settings.adapters import ObjectSettings
from infra.settings.features import SealSettings
from infra.settings.values import BucketPlace

if TYPE_CHECKING:
    from infra.timestamps import TimestampServer, TimestampTrust

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0
PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


class KeyUnusable(OperatorError):
    """A key file that can't be read, or holds another kind of key."""


class SealKey:
    """Signs seals."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    @property
    def public(self) -> PublicKeys:
        """What checks its signatures."""
        return PublicKeys([self._key.public_key()])

    def sign(self, seal_hash: bytes) -> bytes:
        """Return 64 bytes over the 32 of a seal's hash."""
        return self._key.sign(seal_hash)


class PublicKeys:
    """The keys that seals may be signed with; more than one after a key was changed."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    def fault(self, seal_hash: bytes, signature: bytes, name: str | None) -> str | None:
        """Return why a signature proves nothing, None when it is right."""
        key = self._keys.get(name or "")
        if key is None:
            return f"it is signed with the key {name}, not with {' or '.join(self._keys)}"
        try:
            key.verify(signature, seal_hash)
        except InvalidSignature:
            return f"its signature is not the key {name}'s over its hash"
        return None


class SealStamps:
    """Has seals stamped by a time-stamp server, one in each interval."""

    def __init__(
        self, server: TimestampServer, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._server, self._seconds, self._clock = server, seconds, clock
        self._next: float | None = None
        self._stamped: tuple[bytes, bytes] | None = None

    def __call__(self, seal: Seal) -> bytes | None:
        """Return a time stamp over the hash of the seal, None where none is due or to be had.

        All who ask for one seal get the same. A failure is logged and counted.
        """
        if self._stamped is not None and self._stamped[0] == seal.hash:
            return self._stamped[1]
        if self._next is not None and self._clock() < self._next:
            return None
        self._next = self._clock() + self._seconds
        try:
            self._stamped = (seal.hash, self._server.stamp(seal.hash))
        except OperatorError as error:
            self._next = self._clock() + min(self._seconds, RETRY_SECONDS)
            SEAL_FAILURES.labels("timestamp").inc()
            log.warning("seal_not_stamped", number=seal.number, error=str(error))
            return None
        return self._stamped[1]


@dataclass(frozen=True, slots=True)
class Proofs:
    """What a verification compares with: public keys, what is known outside, trusted stamps."""

    public_keys: PublicKeys | None = None
    outside: Outside = NOTHING
    trust: TimestampTrust | None = None

    def open_anchors(self) -> Iterator[Anchor] | None:
        """Return the anchors of all places as they are now, before the log is read.

        None where there is no place. Raise AnchorsUnusable, also while they are read.
        """
        stores = self.outside.anchors
        return merge(*(store.read() for store in stores), key=itemgetter(0)) if stores else None

    def acceptances(self) -> list[Anchor]:
        """Return the seals from which operators went on. Raise AnchorsUnusable."""
        return [found for store in self.outside.anchors for found in store.acceptances()]


NO_PROOFS = Proofs()


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_seal_key(path: Path) -> SealKey:
    """Return the private key in a PEM file (`openssl genpkey`). Raise KeyUnusable."""
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{path} holds no private key in PEM that can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
    return SealKey(key)


def read_public_keys(path: Path) -> PublicKeys:
    """Return the public keys in a PEM file, one or several. Raise KeyUnusable."""
    try:
        keys = [load_pem_public_key(block) for block in PEM.findall(_read(path))]
    except (ValueError, UnsupportedAlgorithm):
        keys = []
    if not keys:
        raise KeyUnusable(f"{path} holds no public key in PEM that can be read")
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if len(found) < len(keys):
        raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
    return PublicKeys(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"the key file {path} can't be read: {error.strerror}") from error


def configured_proofs(
    settings: SealSettings, objects: ObjectSettings, folder: Path | None = None
) -> Proofs:
    """Return what the settings name, and what lies in the data folder, if one is given.

    Raise KeyUnusable, CertificatesUnusable, and S3Misconfigured.
    """
    keys = None
    if settings.public_key_file is not None:
        keys = read_public_keys(settings.public_key_file)
    elif settings.key_file is not None:
        keys = read_seal_key(settings.key_file).public
    trust = None if settings.tsa_ca_file is None else _trust(settings.tsa_ca_file)
    head = None if folder is None else HeadFile(seal_head_path(folder))
    anchors = configured_anchors(settings, objects)
    return Proofs(keys, Outside(head, anchors, _forgotten(settings, objects, folder)), trust)


def _forgotten(
    settings: SealSettings, objects: ObjectSettings, folder: Path | None
) -> list[ForgottenList]:
    """Return the lists of who was forgotten: in the data folder, and beside each place of anchors.

    Releases before these lists take what is under an anchor's name for anchors.
    """
    places: list[LinePlace] = [] if folder is None else [LineFile(forgotten_path(folder))]
    for place in settings.anchors:
        if isinstance(place, BucketPlace):
            places.append(
                LockedObjects(
                    objects.model_copy(update={"bucket": place.bucket}),
                    f"{place.prefix}.forgotten",
                    mode=settings.anchor_lock,
                    retention=timedelta(days=settings.anchor_retention_days),
                    keeps=True,
                )
            )
        else:
            places.append(LineFile(place.path.with_name(f"{place.path.name}.forgotten")))
    return list(map(ForgottenList, places))


def _trust(path: Path) -> TimestampTrust:
    from infra.timestamps import read_trust

    return read_trust(path)


def configured_key(settings: SealSettings) -> SealKey | None:
    """Return what new seals are signed with. Raise KeyUnusable."""
    return None if settings.key_file is None else read_seal_key(settings.key_file)


def configured_anchors(settings: SealSettings, objects: ObjectSettings) -> list[AnchorStore]:
    """Return where new seals are anchored. Raise S3Misconfigured."""
    return [
        _bucket(place, settings, objects)
        if isinstance(place, BucketPlace)
        else FileAnchors(place.path)
        for place in settings.anchors
    ]


def _bucket(place: BucketPlace, settings: SealSettings, objects: ObjectSettings) -> AnchorStore:
    return BucketAnchors(
        objects.model_copy(update={"bucket": place.bucket}),
        place.prefix,
        mode=settings.anchor_lock,
        retention=timedelta(days=settings.anchor_retention_days),
        pause_seconds=settings.anchor_seconds,
    )


def configured_stamps(settings: SealSettings) -> Callable[[Seal], bytes | None]:
    """Return what stamps seals: nothing where no server is set. Raise CertificatesUnusable."""
    if settings.tsa_url is None or settings.tsa_ca_file is None:
        return lambda seal: None
    # Its library is slow to import, and not needed without a server.
    from infra.timestamps import TimestampServer, read_trust

    server = TimestampServer(settings.tsa_url, read_trust(settings.tsa_ca_file))
    return SealStamps(server, settings.tsa_seconds)
