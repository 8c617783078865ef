"""`backlot events prove`: a proof that one event is in the log, made here, checked anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from backlot.events.archive import Anchors, ArchiveError, PublicKey, connected, proofs_of
from backlot.output import Json, show
from infra.errors import ExitCode, UsageError
from infra.settings import load_settings


def prove(
    position: Annotated[int | None, typer.Argument(min=1, help="Of the event.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the proof to this file.")
    ] = None,
    seal: Annotated[
        int | None, typer.Option(min=1, help="Lead to this seal; default: to the newest.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check this proof, without a database.")
    ] = None,
    public_key: PublicKey = None,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Prove that an event is in the log, or check a proof. Exit code 1: it does not hold."""
    if (position is None) == (check is None):
        raise UsageError("name a position to prove, or a proof to --check")
    if check is not None:
        _check(check, public_key, anchors, as_json)
    elif position is not None:
        _prove(position, seal, output, as_json)


def _prove(position: int, seal: int | None, output: Path | None, as_json: bool) -> None:
    from engine.archive.inclusion import make_proof

    with connected(load_settings(), "proof") as conn:
        proof = make_proof(conn, position, seal)
    own, head = proof["seal"]["number"], proof.get("head", proof["seal"])["number"]
    text = f"position {position} is in seal {own}"
    text += "" if head == own else f", and that in the tree of seal {head}"
    if output is None:
        show(f"{text}: --output writes the proof, --json prints it", proof, as_json)
        return
    try:
        output.write_bytes(orjson.dumps(proof, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise ArchiveError(f"{output} can't be written: {error.strerror}") from error
    show(f"{text}: proof written to {output}", {"file": str(output), "seal": head}, as_json)


def _check(file: Path, public_key: Path | None, anchors: Path | None, as_json: bool) -> None:
    from engine.archive.inclusion import ProofRefused, check_proof

    proofs = proofs_of(load_settings(), public_key, anchors, here=False)
    try:
        proof = orjson.loads(file.read_bytes())
    except OSError as error:
        raise ArchiveError(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ProofRefused(f"{file} is no proof: {error}") from error
    verdict = check_proof(proof, proofs.open_anchors() or (), proofs.public_keys)
    show(verdict.detail, verdict.as_dict(), as_json)
    raise typer.Exit(ExitCode.DONE if verdict.ok else ExitCode.NOT_WELL)
