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
    """The public keys, and the file of anchors, that a verification compares with."""

    public_keys: PublicKeys | None = None
    anchors: Path | None = None

    def open_anchors(self) -> Iterator[Anchor] | None:
        """The anchors as they are now; to be opened before the log is read."""
        return None if self.anchors is None else read_anchors(self.anchors)


def configured_proofs(settings: Settings) -> Proofs:
    """Raises KeyUnusable. A file of anchors that is not there yet counts as none."""
    keys = None
    if settings.seal_public_key_file is not None:
        keys = read_public_keys(settings.seal_public_key_file)
    elif settings.seal_key_file is not None:
        keys = read_seal_key(settings.seal_key_file).public
    anchors = settings.seal_anchor
    return Proofs(keys, anchors if anchors is not None and anchors.exists() else None)


def configured_key(settings: Settings) -> SealKey | None:
    """What new seals are signed with. Raises KeyUnusable."""
    return None if settings.seal_key_file is None else read_seal_key(settings.seal_key_file)


def configured_anchors(settings: Settings) -> FileAnchors | None:
    """Where new seals are anchored."""
    return None if settings.seal_anchor is None else FileAnchors(settings.seal_anchor)
