"""`backlot events`: the log in files (export, import, rewrite), and its proofs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import psycopg
import typer
from psycopg import Connection
from psycopg.rows import TupleRow

from backlot import arguments
from backlot.database import database_url, key_encryption, operator_name, recorded
from backlot.output import Json, show
from backlot.screen import Act, Screen, Yes, require_yes
from domain.operation import Members
from engine.archive.lines import ExportFormat, ExportRequest
from engine.installation import ENGINE, LOG, migrate, require_migrated
from engine.payload_mode import PayloadMode
from engine.seals.chain import connect, head
from infra.data_folder import DataFolder
from infra.errors import ExitCode, OperatorError, UsageError
from infra.settings import Settings, load_settings

if TYPE_CHECKING:
    from engine.seals.proofs import Proofs
    from engine.seals.report import Report


class LateBar(ExitStack):
    """Shows nothing until `begin` says how many events there are."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._screen, self._title = Screen(), title
        self._act: Act | None = None

    def begin(self, total: int, done: int = 0) -> None:
        """So many events in all, of which an earlier run has done some."""
        if done:
            self._screen.say(f"{self._title}: going on after {done:,} events")
        if total > done:
            self._act = self.enter_context(self._screen.act(self._title, total - done, "events"))

    def advance(self, steps: int) -> None:
        if self._act is not None and steps:
            self._act.advance(steps)


PublicKey = Annotated[
    Path | None,
    typer.Option(
        help="PEM file with the Ed25519 public keys; default: SEAL_PUBLIC_KEY_FILE, SEAL_KEY_FILE."
    ),
]
Anchors = Annotated[Path | None, typer.Option(help="File of anchors; default: SEAL_ANCHOR's.")]
Follows = Annotated[
    Path | None,
    typer.Option(help="An export of the log that this one was rewritten from: compare the link."),
]


class ArchiveError(OperatorError):
    """An export, import or verification that could not be carried out."""


def register(app: typer.Typer) -> None:
    """Add the commands to `backlot events`."""
    app.command("export")(export)
    app.command("import")(import_events)
    app.command("rewrite")(rewrite)
    app.command("verify")(verify)
    app.command("accept")(accept)
    app.command("prove")(prove)


def export(
    file: Annotated[Path, typer.Argument(help="What to write; must not be there yet.")],
    export_format: Annotated[
        ExportFormat,
        typer.Option("--format", help="jsonl is lossless and can be verified and imported."),
    ] = ExportFormat.JSONL,
    first: Annotated[int | None, typer.Option("--from", min=1, help="First position.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Last position.")] = None,
    payload: Annotated[
        PayloadMode, typer.Option(help="What is told of the content and of who acted.")
    ] = PayloadMode.FULL,
    with_keys: Annotated[
        bool,
        typer.Option("--with-keys", help="Write FILE.keys, too: wrapped keys, who is who."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the events to a file; after an interruption the same command goes on."""
    from engine.archive.keys import export_keys, keys_path
    from engine.archive.transfer import export_log

    settings = load_settings()
    wish = ExportRequest(export_format, payload, first, last)
    asked: Members = {"file": str(file), "format": str(export_format), "payload": str(payload)}
    with (
        connected(settings, "export") as conn,
        recorded(database_url(settings), "export", "events", asked) as running,
        LateBar("exporting") as bar,
    ):
        plan = export_log(
            conn,
            file,
            wish,
            on_begun=lambda plan, done: bar.begin(plan.events, done),
            on_progress=bar.advance,
        )
        if with_keys:
            # After the events: whom they name is known by then.
            export_keys(conn, keys_path(file))
        told = running.result = {
            "format": plan.format.value,
            "payload": plan.payload.value,
            "from": plan.first,
            "to": plan.last,
            "events": plan.events,
            "provable": plan.provable,
        }
    text = f"{plan.events:,} events written to {file}"
    if not plan.provable:
        text += "; without their exact bytes and seals it can't be verified or imported"
    elif with_keys:
        text += f", and their keys to {keys_path(file).name}: keep the two apart"
    show(text, {"file": str(file), **told}, as_json)


def import_events(
    file: Annotated[Path, typer.Argument(help="What `events export` wrote as jsonl.")],
    without_keys: Annotated[
        bool,
        typer.Option("--without-keys", help="Nobody shall read the texts; else FILE.keys is used."),
    ] = False,
    public_key: PublicKey = None,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Fill an empty store with an export and its keys, all or nothing. Exit code 1: a fault."""
    from engine.archive.transfer import import_log
    from engine.archive.verification import read_header

    settings = load_settings()
    proofs, plan = proofs_of(settings, public_key, anchors, here=False), read_header(file)
    topics = arguments.topics()
    with connected(settings, "import", fills=True) as conn:
        _refuse_old_read_models(conn)
        with LateBar("importing") as bar:
            bar.begin(plan.last)
            import_log(
                conn,
                file,
                proofs,
                kek=key_encryption(settings),
                without_keys=without_keys,
                known_topics=topics,
                on_progress=bar.advance,
            )
        report = _verify_database(conn, proofs)
    # Only now: the store had to be empty, and what was verified is what the file holds.
    with recorded(database_url(settings), "import", "events", {"file": str(file)}) as running:
        running.result = report.as_dict()
    show(f"imported {file}\n{_summary(report)}", {"file": str(file), **report.as_dict()}, as_json)
    raise typer.Exit(ExitCode.DONE if report.ok else ExitCode.NOT_WELL)


def rewrite(
    file: Annotated[Path, typer.Argument(help="What `events export` wrote of the old log.")],
    public_key: PublicKey = None,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Fill an empty store with an older release's log under pseudonyms. Exit code 1: a fault."""
    from engine.archive.rewrite import rewrite_log
    from engine.archive.verification import read_header
    from engine.seals.proofs import configured_key

    settings = load_settings()
    old, plan = proofs_of(settings, public_key, anchors, here=False), read_header(file)
    proofs = proofs_of(settings, public_key, None)
    with _folder(settings), connected(settings, "rewrite", fills=True) as conn:
        _refuse_old_read_models(conn)
        if unusable := proofs.outside.compare(conn).unusable:
            # What they know of the old log's seals has to be void afterwards.
            raise ArchiveError(f"rewrite: {'; '.join(unusable)}")
        with LateBar("rewriting") as bar:
            bar.begin(plan.last)
            done = rewrite_log(
                conn,
                file,
                key_encryption(settings),
                old,
                seal_key=configured_key(settings.seals),
                block_events=settings.seals.block_events,
                known_topics=arguments.topics(),
                on_progress=bar.advance,
            )
        _go_on_from(conn, proofs, file)
        report = _verify_database(conn, proofs)
    told = {"persons": done.persons, "moved": done.moved, "unreadable": done.unreadable}
    with recorded(database_url(settings), "rewrite", "events", {"file": str(file)}) as running:
        running.result = {**told, **report.as_dict()}
    text = (
        f"rewrote {file}: {done.persons:,} persons, {done.moved:,} events in streams with other "
        f"ids, {done.unreadable:,} events that can't be read and stay as they were\n"
    )
    show(text + _summary(report), {"file": str(file), **told, **report.as_dict()}, as_json)
    raise typer.Exit(ExitCode.DONE if report.ok else ExitCode.NOT_WELL)


def _folder(settings: Settings) -> AbstractContextManager[object]:
    """Hold the data folder, for the keys and the head; of an embedded database its process does."""
    return nullcontext() if settings.database.embedded else DataFolder(settings.server.data_dir)


def _go_on_from(conn: Connection[TupleRow], proofs: Proofs, file: Path) -> None:
    """Let the places outside know the rewritten log, where they know the seals of the old one."""
    from engine.seals.anchors import Acceptance

    if proofs.outside.compare(conn).differences:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        acceptance = Acceptance(operator_name(), at, f"rewritten from {file.name}")
        proofs.outside.begin_anew(conn, acceptance)


def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An export to verify without a database.")
    ] = None,
    follows: Follows = None,
    public_key: PublicKey = None,
    anchors: Anchors = None,
    as_json: Json = False,
) -> None:
    """Recompute the seal chain. Exit code 1: an event is altered, missing or added."""
    from engine.seals.proofs import Proofs

    settings = load_settings()
    proofs = proofs_of(settings, public_key, anchors, here=file is None)
    if file is not None:
        report = _verify_file(file, proofs)
    else:
        with (
            connected(settings, "verification") as conn,
            recorded(database_url(settings), "verify", "events", {}) as running,
        ):
            report = _verify_database(conn, proofs)
            running.result = report.as_dict()
    if follows is not None:
        report = report.linked_to(_verify_file(follows, Proofs(proofs.public_keys)))
    show(_summary(report), report.as_dict(), as_json)
    raise typer.Exit(ExitCode.DONE if report.ok else ExitCode.NOT_WELL)


def accept(
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the log later.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Go on sealing from the newest seal in the database, as after a restore from a backup."""
    from engine.seals.anchors import Acceptance
    from engine.seals.chain import last_seal

    settings = load_settings()
    outside = proofs_of(settings, None, None).outside
    with connected(settings, "acceptance") as conn:
        differences, newest = outside.compare(conn).differences, last_seal(conn)
        if not differences:
            raise ArchiveError("the seals are those that are known outside: nothing to accept")
        number, last = (newest.number, newest.last) if newest else (0, 0)
        for text in differences:
            Screen().say(text)
        require_yes(f"Go on from seal {number}, position {last}?", yes=yes)
        asked: Members = {"reason": reason, "seal": number, "differences": list(differences)}
        with recorded(database_url(settings), "accept-seals", "events", asked) as running:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            outside.accept(conn, Acceptance(operator_name(), at, reason))
            told = running.result = {"seal": number, "position": last}
    show(f"sealing goes on after seal {number}, position {last}", told, as_json)


def _verify_file(file: Path, proofs: Proofs) -> Report:
    from engine.archive.verification import read_header, verify_export

    topics = arguments.topics()
    with LateBar("verifying") as bar:
        bar.begin(read_header(file).events)
        return verify_export(file, proofs, known_topics=topics, on_progress=bar.advance)


def _verify_database(conn: Connection[TupleRow], proofs: Proofs) -> Report:
    from engine.seals.verification import record, verify_database

    topics = arguments.topics()
    with LateBar("verifying") as bar:
        bar.begin(head(conn))
        report = verify_database(conn, proofs, known_topics=topics, on_progress=bar.advance)
    record(conn, report)
    return report


def proofs_of(
    settings: Settings, public_key: Path | None, anchors: Path | None, *, here: bool = True
) -> Proofs:
    """Return what a verification compares with; only of the log `here` there is a head."""
    from engine.seals.anchors import FileAnchors
    from engine.seals.outside import Outside
    from engine.seals.proofs import configured_proofs

    seals, folder = settings.seals, settings.server.data_dir.absolute()
    if public_key is not None:
        seals = seals.model_copy(update={"public_key_file": public_key})
    if anchors is not None:
        seals = seals.model_copy(update={"anchors": ()})
    found = configured_proofs(seals, settings.objects, folder if here else None)
    if anchors is None:
        return found
    outside = Outside(found.outside.head, (FileAnchors(anchors, required=True),))
    return replace(found, outside=outside)


@contextmanager
def connected(
    settings: Settings, purpose: str, *, fills: bool = False
) -> Iterator[Connection[TupleRow]]:
    """Connect to a database of this release, or to an empty one that the command fills."""

    try:
        with connect(database_url(settings), purpose) as conn:
            prepare = migrate if fills else require_migrated
            prepare(conn, ENGINE, LOG)
            yield conn
    except (psycopg.Error, OSError) as error:
        raise ArchiveError(f"{purpose} broken off: {' '.join(str(error).split())}") from error


def _refuse_old_read_models(conn: Connection[TupleRow]) -> None:
    """Positions of another log must not be taken for positions of this one."""
    from engine.archive.transfer import ImportRefused

    if head(conn) > 0:
        # A store that is not empty is refused anyhow, and that is then the reason.
        return
    moved = "SELECT FROM backlot_checkpoints WHERE kind = 'projection' AND position > 0 LIMIT 1"
    if conn.execute(moved).fetchone() is not None:
        raise ImportRefused("the read models are of another log: import into a new database")


def _summary(report: Report) -> str:
    seals = (
        f"{report.seals:,} seals ({report.signed:,} signed, {report.anchored:,} anchored, "
        f"{report.timestamped:,} time-stamped)"
    )
    lines = [
        f"{report.events:,} events looked at, sealed up to position {report.sealed_to:,}: {seals}",
        f"{report.unsealed:,} events at the end are not sealed yet and not proved",
    ]
    fault = report.fault
    lines += [f"{caveat.kind}: {caveat.detail}" for caveat in report.caveats]
    lines.append("no fault" if fault is None else f"FAULT ({fault.kind}): {fault.detail}")
    if fault is not None and fault.stream_id is not None:
        lines.append(f"  stream {fault.stream_id}, version {fault.version}")
    return "\n".join(lines)


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
        _check_proof(check, public_key, anchors, as_json)
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


def _check_proof(file: Path, public_key: Path | None, anchors: Path | None, as_json: bool) -> None:
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
