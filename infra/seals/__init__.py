"""Seals over the event log: a hash chain that names whatever was altered, removed or added."""

from __future__ import annotations

from infra.seals.anchors import Anchor, AnchorStore, AnchorsUnusable, FileAnchors, read_anchors
from infra.seals.chain import Seal, StoredRow, leaf, seal_hash
from infra.seals.check import Check
from infra.seals.proofs import Proofs, configured_anchors, configured_key, configured_proofs
from infra.seals.report import Fault, FaultKind, Report
from infra.seals.results import Verification, keep, last_good_seal, latest
from infra.seals.seal_check import SealCheck
from infra.seals.sealer import LogBroken, Sealer
from infra.seals.signing import KeyUnusable, PublicKeys, SealKey, read_public_keys, read_seal_key
from infra.seals.tables import connect, head
from infra.seals.verify import verify_database

__all__ = [
    "Anchor",
    "AnchorStore",
    "AnchorsUnusable",
    "Check",
    "Fault",
    "FaultKind",
    "FileAnchors",
    "KeyUnusable",
    "LogBroken",
    "Proofs",
    "PublicKeys",
    "Report",
    "Seal",
    "SealCheck",
    "SealKey",
    "Sealer",
    "StoredRow",
    "Verification",
    "configured_anchors",
    "configured_key",
    "configured_proofs",
    "connect",
    "head",
    "keep",
    "last_good_seal",
    "latest",
    "leaf",
    "read_anchors",
    "read_public_keys",
    "read_seal_key",
    "seal_hash",
    "verify_database",
]
