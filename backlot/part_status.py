"""One line of what `backlot doctor` reports, and those about what features stand on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx
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
OPENAI = "https://api.openai.com/v1"

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


def failure(name: str, kind: Kind, url: str | None, wrong: str, remedy: str) -> DoctorPart:
    """A part that an operator has to mend: what is wrong, and what to do about it."""
    return DoctorPart(name, kind, url, False, f"{wrong.rstrip('.')}; {remedy}")


NOT_RUNNING = "not running; `make up` starts it"
NOT_MADE = "not made yet; a start with any role makes them"
WITHOUT = "install it, or unset EMBEDDING_MODEL"
NOT_EMBEDDED = "not made yet; a process with the role workers makes them"


AWAY = (psycopg.Error, DataFolderError, PostgresError, OSError)


def analytics(settings: Settings) -> DoctorPart:
    """Whether the tables are there, and on plain PostgreSQL or on TimescaleDB."""
    own = settings.analytics.timescale_url
    kind: Kind = "embedded" if own is None and settings.database.embedded else "external"
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart("analytics", "embedded", None, True, NOT_RUNNING)
        found = look(url)
    except AWAY as error:
        # What is wrong with the database of everything else stands in its own line.
        told = f"not known: {explained(error)}"
        if own is None:
            return DoctorPart("analytics", kind, None, True, told)
        return failure("analytics", kind, None, told, "start it, or see TIMESCALE_URL")
    host = conninfo_to_dict(url).get("host", "") if own else None
    shown = f"postgresql://{host}" if host else None
    return DoctorPart("analytics", kind, shown, True, str(found or NOT_MADE))


def language_model(settings: Settings) -> DoctorPart:
    """Whether the language model's server answers, and takes the key."""
    if not settings.llm.configured:
        detail = "none: comments in other languages are skipped (OPENAI_API_KEY, OPENAI_BASE_URL)"
        return DoctorPart("llm", "embedded", None, True, detail)
    url = settings.llm.base_url or OPENAI
    key = settings.llm.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        answer = httpx.get(f"{url}/models", headers=headers, timeout=PATIENCE_SECONDS)
    except httpx.HTTPError as error:
        wrong = f"does not answer: {type(error).__name__}"
        return failure("llm", "external", url, wrong, "start it, or see OPENAI_BASE_URL")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return failure("llm", "external", url, "does not take the key", "see OPENAI_API_KEY")
    told = f"answers; {settings.translation.model} translates"
    return DoctorPart("llm", "external", url, True, told)


def embeddings(settings: Settings) -> DoctorPart:
    """Whether there is all that embeddings need, and how many there are."""
    if settings.embeddings.model is None:
        detail = "none: recommendations do without (EMBEDDING_MODEL)"
        return DoctorPart("embeddings", "embedded", None, True, detail)
    if not settings.llm.configured:
        wrong = "EMBEDDING_MODEL: needs OPENAI_API_KEY or OPENAI_BASE_URL"
        return failure("embeddings", "external", None, wrong, "set one of these")
    try:
        url = _url(settings)
        if url is None:
            return DoctorPart("embeddings", "external", None, True, NOT_RUNNING)
        with open_connection(url, "doctor", UNHURRIED) as conn:
            lacking, found = embedding_table.lack(conn), embedding_table.state(conn)
    except AWAY as error:
        # Whose fault that is stands in the line of the analytics.
        told = f"not known: {type(error).__name__}"
        return DoctorPart("embeddings", "external", None, True, told)
    if lacking is not None:
        return failure("embeddings", "external", None, lacking, WITHOUT)
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
