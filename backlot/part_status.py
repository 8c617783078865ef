"""One line of what `backlot doctor` reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from infra.data_folder import DataFolderError, cluster_path
from infra.postgres.cluster import PostgresError
from infra.postgres.connection import UNHURRIED, Limits, explained, open_connection
from infra.postgres.embedded import running_url
from infra.settings import Settings
from projections.analytics.schema import SchemaState, state
from projections.recommendations import embeddings as embedding_table

PATIENCE_SECONDS = 5

Kind = Literal["embedded", "external"]


@dataclass(frozen=True, slots=True)
class DoctorPart:
    """One line of the report. ``ok`` is False only for something that an operator has to mend."""

    name: str
    kind: Kind
    url: str | None
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """The part as ``doctor --json`` prints it."""
        return asdict(self)


def failing(name: str, kind: Kind, url: str | None, wrong: str, remedy: str) -> DoctorPart:
    """A part that an operator has to mend: what is wrong, and what to do about it."""
    return DoctorPart(name, kind, url, False, f"{wrong.rstrip('.')}; {remedy}")


NOT_MADE = "not made yet; a start with any role makes them"
WITHOUT = "install it, or unset EMBEDDING_MODEL"
NOT_EMBEDDED = "not made yet; a process with the role workers makes them"


def analytics(settings: Settings) -> DoctorPart:
    """Whether the tables are there, and on plain PostgreSQL or on TimescaleDB."""
    own = settings.analytics.timescale_url
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart(
                "analytics", "embedded", None, True, "not running; `make up` starts it"
            )
        found = look(url)
    except (psycopg.Error, DataFolderError, PostgresError, OSError) as error:
        # What is wrong with the database of everything else stands in its own line.
        told = f"not known: {explained(error)}"
        if own is None:
            return DoctorPart("analytics", _kind(settings), None, True, told)
        return failing("analytics", _kind(settings), None, told, "start it, or see TIMESCALE_URL")
    host = conninfo_to_dict(url).get("host", "") if own else None
    shown = f"postgresql://{host}" if host else None
    return DoctorPart("analytics", _kind(settings), shown, True, str(found or NOT_MADE))


def embeddings(settings: Settings) -> DoctorPart:
    """Whether there is all that embeddings need, and how many there are."""
    if settings.embeddings.model is None:
        detail = "none: recommendations do without (EMBEDDING_MODEL)"
        return DoctorPart("embeddings", "embedded", None, True, detail)
    if not settings.llm.configured:
        wrong = "EMBEDDING_MODEL: needs OPENAI_API_KEY or OPENAI_BASE_URL"
        return failing("embeddings", "external", None, wrong, "set one of these")
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart(
                "embeddings", "external", None, True, "not running; `make up` starts it"
            )
        return _embeddings(url)
    except (psycopg.Error, DataFolderError, PostgresError, OSError) as error:
        # Whose fault that is stands in the line of the analytics.
        return DoctorPart(
            "embeddings", "external", None, True, f"not known: {type(error).__name__}"
        )


def _embeddings(url: str) -> DoctorPart:
    with open_connection(url, "doctor", UNHURRIED) as conn:
        lacking = embedding_table.lack(conn)
        found = embedding_table.state(conn)
    if lacking is not None:
        return failing("embeddings", "external", None, lacking, WITHOUT)
    return DoctorPart("embeddings", "external", None, True, str(found or NOT_EMBEDDED))


def look(url: str, limits: Limits = UNHURRIED) -> SchemaState | None:
    """What the analytics of that database stand on; raises psycopg.Error."""
    with open_connection(url, "doctor", limits) as conn:
        return state(conn)


def _url(settings: Settings) -> str | None:
    for configured in (settings.analytics.timescale_url, settings.database.url):
        if configured is not None:
            return configured.get_secret_value()
    return running_url(cluster_path(settings.server.data_dir.absolute()))


def _kind(settings: Settings) -> Kind:
    embedded = settings.analytics.timescale_url is None and settings.database.embedded
    return "embedded" if embedded else "external"
