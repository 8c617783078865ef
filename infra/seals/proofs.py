"""What the settings give to prove seals with: who may have signed them, where they are anchored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.seals.anchors import Anchor, FileAnchors, read_anchors
from infra.seals.signing import PublicKeys, SealKey, read_public_keys, read_seal_key
from infra.settings import Settings


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


def configured_proofs(settings: Settings) -> Proofs:
    """What the settings name. Raises KeyUnusable."""
    keys = None
    if settings.seal_public_key_file is not None:
        keys = read_public_keys(settings.seal_public_key_file)
    elif settings.seal_key_file is not None:
        keys = read_seal_key(settings.seal_key_file).public
    return Proofs(keys, settings.seal_anchor, before_first=True)


def configured_key(settings: Settings) -> SealKey | None:
    """What new seals are signed with. Raises KeyUnusable."""
    return None if settings.seal_key_file is None else read_seal_key(settings.seal_key_file)


def configured_anchors(settings: Settings) -> FileAnchors | None:
    """Where new seals are anchored."""
    return None if settings.seal_anchor is None else FileAnchors(settings.seal_anchor)
