"""The console script: one short command each, one line for each expected failure.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import gc
import getpass
import re
import subprocess
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import structlog
import typer
from typer.exceptions import TyperException

from backlot import analytics, keys, likes, operations, privacy, tasks, topics, webhooks
from backlot.arguments import SIZES, CommandGroup
from backlot.database import close_persons, signing_secret
from backlot.events import commands
from backlot.output import Json, show
from backlot.projections import commands as projections
from backlot.signals import Stop
from infra.errors import ExitCode, OperatorError, UsageError
from infra.http.shapes import rfc3339
from infra.settings import Settings, load_settings

# Longer than any upload takes; the token never leaves the process but to the server.
UPLOAD_LIFETIME = timedelta(days=7)

app = typer.Typer(
    name="backlot",
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The engagement back end of a video platform. Settings are environment variables: "
    "see .env.example.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


app.add_typer(analytics.app, name="analytics")
app.add_typer(commands.app, name="events")
app.add_typer(keys.app, name="keys")
app.add_typer(likes.app, name="likes")
app.add_typer(operations.app, name="operations")
app.add_typer(projections.app, name="projections")
app.add_typer(topics.app, name="topics")
app.add_typer(privacy.app, name="privacy")
app.add_typer(tasks.app, name="tasks")
app.add_typer(webhooks.app, name="webhooks")


class TokenRole(StrEnum):
    """What a token may carry: an operator's role, or that of a program."""

    ADMIN = "admin"
    AUDITOR = "auditor"
    MODERATOR = "moderator"
    SERVICE = "service"


class CommandError(UsageError):
    """A command that cannot be carried out as it was given."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"backlot {version('backlot')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """What comes before every command."""


@app.command()
def up() -> None:
    """Start everything in this process; Ctrl-C or SIGTERM stops it cleanly."""
    settings = load_settings()
    # Nothing that is imported becomes garbage, and to look for some takes a tenth of the time.
    gc.disable()
    try:
        from backlot.up import run_up
    finally:
        gc.enable()
    raise typer.Exit(run_up(settings))


@app.command()
def demo(
    url: Annotated[
        str | None, typer.Option(help="The server to play against; default: this one.")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start a server for the demo when none answers.")
    ] = False,
    viewers: Annotated[int, typer.Option(min=1, max=10_000, help="How many people watch.")] = 25,
    as_json: Json = False,
) -> None:
    """Upload a short video to a running server and play a small community around it.

    Exit code 1: something that was read back is not what was done.
    """
    settings = load_settings()
    from backlot.demo.client import running_server
    from backlot.demo.run import run_demo

    if url is not None or not start:
        target = (url or settings.server.public_url).rstrip("/")
        raise typer.Exit(run_demo(target, settings=settings, viewers=viewers, as_json=as_json))
    with running_server(settings) as own:
        code = run_demo(own.server.local_url, settings=own, viewers=viewers, as_json=as_json)
    if own is not settings:
        typer.echo("Its own server is stopped again; `make up` first keeps one running.", err=True)
    raise typer.Exit(code)


@app.command()
def token(
    user: Annotated[str, typer.Option(help="Whom the token stands for (1 to 128 characters).")],
    admin: Annotated[bool, typer.Option("--admin", help="The same as --role admin.")] = False,
    auditor: Annotated[bool, typer.Option("--auditor", help="The same as --role auditor.")] = False,
    role: Annotated[
        list[TokenRole] | None,
        typer.Option(help="Give a role; may be given several times.", show_default=False),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 30m, 1h, 7d.")] = "1h",
    as_json: Json = False,
) -> None:
    """Print a token signed with the local secret (or JWT_SECRET)."""
    from infra.http.auth import token_id

    lifetime = parse_ttl(ttl)
    given = {TokenRole.ADMIN: admin, TokenRole.AUDITOR: auditor}
    named = {*(role or ()), *(flag for flag, wanted in given.items() if wanted)}
    roles = sorted(map(str, named))
    minted = _local_token(load_settings(), user, lifetime, roles)
    expires = rfc3339(datetime.now(UTC) + lifetime, "seconds")
    told = {"token": minted, "userId": user, "roles": roles, "expiresAt": expires}
    show(minted, told | {"jti": token_id(minted)}, as_json)


@app.command()
def login(
    user: Annotated[str, typer.Option(help="Whom the link logs in.")] = "operator",
    role: Annotated[
        list[TokenRole] | None,
        typer.Option(help="Give a role; may be given several times. Default: admin."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a link that logs its first user into the pages, once within ten minutes."""
    from backlot.database import local_secret, signing_secret
    from backlot.web import LINK_SECONDS, login_link

    settings = load_settings()
    signing_secret(settings)
    local = "" if settings.web.session_secret is not None else local_secret(settings)
    roles = sorted(map(str, role or (TokenRole.ADMIN,)))
    link = login_link(settings, local, user, roles)
    expires = rfc3339(datetime.now(UTC) + timedelta(seconds=LINK_SECONDS), "seconds")
    show(link, {"link": link, "userId": user, "roles": roles, "expiresAt": expires}, as_json)


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="The video or audio file.", show_default=False)],
    url: Annotated[str | None, typer.Option(help="The server; default: this one.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Who uploads; default: minted for --user.", envvar="BACKLOT_TOKEN"),
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Whom a minted token stands for; default: your login name.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Default: the file's name.")] = None,
    description: Annotated[str | None, typer.Option(help="What viewers read about it.")] = None,
    category: Annotated[str | None, typer.Option(help="For example: nature.")] = None,
    visibility: Annotated[
        Literal["public", "unlisted", "private"] | None,
        typer.Option(help="Who may see the video; default: everybody."),
    ] = None,
    content_type: Annotated[
        str | None, typer.Option(help="For example video/mp4; default: guessed from the name.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=32, help="Parts sent at once.")] = 4,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with an unfinished upload.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Upload a file in parts; after an interruption the same command sends only the rest."""
    from backlot.upload.run import run_upload

    settings = load_settings()
    if token is None:
        lifetime = min(UPLOAD_LIFETIME, settings.auth.max_lifetime)
        token = _local_token(settings, user or _login_name(), lifetime)
    elif user is not None:
        raise CommandError("--user: a --token (or BACKLOT_TOKEN) already says who uploads")
    details = {
        "title": title,
        "description": description,
        "category": category,
        "visibility": visibility,
        "contentType": content_type,
    }
    code = run_upload(
        file,
        (url or settings.server.public_url).rstrip("/"),
        token.strip(),
        named={name: said for name, said in details.items() if said is not None},
        parallel=parallel,
        resume=resume,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is configured, what is embedded and what answers.

    Exit code 1: a part is broken. An embedded part that is merely not started is not.
    """
    from backlot.doctor import as_lines, examine

    parts = examine()
    text = "\n".join(as_lines(parts))
    show(text, {"parts": [part.as_dict() for part in parts]}, as_json)
    raise typer.Exit(ExitCode.DONE if all(part.ok for part in parts) else ExitCode.NOT_WELL)


app.command()(operations.spending)


@app.command()
def openapi(
    api: Annotated[Literal["all", "commands", "queries"], typer.Option(help="Which API.")] = "all",
    _: Json = False,
) -> None:
    """Print the OpenAPI document of the API, as JSON in any case; nothing has to run."""
    from backlot.http import ApiPart, describe

    show("", describe(ApiPart(api)), as_json=True)


@app.command()
def migrate(as_json: Json = False) -> None:
    """Make the tables that the databases lack, and give the running user its rights.

    The one command that needs DATABASE_OWNER_URL. Every start does the same where it may.
    """
    from backlot.database import database_url
    from backlot.installation import prepare_database
    from infra.logging import configure_logging

    settings = load_settings()
    configure_logging(settings.logs)
    prepare_database(settings, database_url(settings))
    show("the tables are there", {"migrated": True}, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure Backlot, or its recommendations by a history; `bench -- --help` says how.

    Exit code 1 when a target was missed.
    """
    command = [sys.executable, "-m", "benchmarks", *context.args]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def parse_ttl(text: str) -> timedelta:
    """Return a duration such as 90s, 30m, 1h or 7d. Raise CommandError for anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text.strip())
    if match is None:
        raise CommandError(f"--ttl: {text!r} is not a duration such as 90s, 30m, 1h or 7d")
    lifetime = int(match[1]) * SIZES[match[2]]
    if lifetime > timedelta(days=3660):
        raise CommandError("--ttl: at most ten years")
    return lifetime


def _local_token(
    settings: Settings, user: str, lifetime: timedelta, roles: Sequence[str] = ()
) -> str:
    from infra.http.auth import InvalidToken, mint_token

    if lifetime > settings.auth.max_lifetime:
        most = settings.auth.max_lifetime_seconds
        raise CommandError(f"--ttl: at most {most} seconds, which JWT_MAX_LIFETIME_SECONDS allows")
    issuer, audience = settings.auth.issuer, settings.auth.audience
    try:
        return mint_token(
            signing_secret(settings), user, roles, lifetime, issuer=issuer, audience=audience
        )
    except InvalidToken as error:
        raise CommandError(f"--user: {error.reason}") from error


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise CommandError("--user: say who uploads, this account has no name") from None


def main() -> None:
    """Run the command line; expected failures are one line on stderr and a non-zero exit."""
    # Until a command configures logging: what is printed is data, and logs are not.
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.exit(_run())


def _run() -> int:
    try:
        with Stop(raises=True):
            code = app(prog_name="backlot", standalone_mode=False)
    except (OperatorError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        typer.echo(f"backlot: {' '.join(message.split())}", err=True)
        return ExitCode.USAGE if isinstance(error, TyperException) else error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except Exception:  # noqa: BLE001 - Python's own code would be 1: something was found.
        traceback.print_exc()
        return ExitCode.FAILED
    finally:
        close_persons()
    return code if isinstance(code, int) else ExitCode.DONE
