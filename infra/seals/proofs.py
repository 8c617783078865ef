"""What the settings give to prove seals with: who may have signed them, where they are anchored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.seals.anchors import Anchor, FileAnchors, read_anchors
from infra.seals.signing import PublicKeys, SealKey, read_public_keys, read_seal_key
from infra.settings.features import SealSettings


@dataclass(frozen=True, slots=True)
class Proofs:
    """The public keys, and the file of anchors, that a verification compares with.

    Where anchors are written it may still be before the first one, and there is no file yet.
    """

    public_keys: PublicKeys | None = None
    anchors: Path | None = None
    before_first: bool = False

    def open_anchors(self) -> Iterator[Anchor] | None:
        """The anchors as they are now; to be opened before the log is read.

        Raises AnchorsUnusable.
        """
        if self.anchors is None or (self.before_first and not self.anchors.exists()):
            return None
        return read_anchors(self.anchors)


def configured_proofs(settings: SealSettings) -> Proofs:
    """What the settings name. Raises KeyUnusable."""
    keys = None
    if settings.public_key_file is not None:
        keys = read_public_keys(settings.public_key_file)
    elif settings.key_file is not None:
        keys = read_seal_key(settings.key_file).public
    return Proofs(keys, settings.anchor, before_first=True)


def configured_key(settings: SealSettings) -> SealKey | None:
    """What new seals are signed with. Raises KeyUnusable."""
    return None if settings.key_file is None else read_seal_key(settings.key_file)


def configured_anchors(settings: SealSettings) -> FileAnchors | None:
    """Where new seals are anchored."""
    return None if settings.anchor is None else FileAnchors(settings.anchor)
