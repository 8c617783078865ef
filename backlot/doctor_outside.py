"""What `backlot doctor` sees of the parts that work on what was recorded."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx

from backlot.doctor_part import PATIENCE_SECONDS, DoctorPart, failing
from infra.settings import Settings
from infra.tasks import BrokerAway, task_queues

OPENAI = "https://api.openai.com/v1"


def kafka(settings: Settings) -> DoctorPart:
    """Whether one of the brokers takes a connection."""
    servers = settings.kafka.bootstrap_servers
    if not servers:
        return DoctorPart(
            "kafka", "embedded", None, True, "not set: consumers follow the event log"
        )
    errors = []
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host, int(port)), PATIENCE_SECONDS).close()
        except OSError as error:
            errors.append(f"{server}: {error.strerror or error}")
    up = len(servers) - len(errors)
    detail = "; ".join([f"{up} of {len(servers)} bootstrap servers answer", *errors])
    if up == 0:
        remedy = "start them, or see KAFKA_BOOTSTRAP_SERVERS"
        return failing("kafka", "external", ",".join(servers), detail, remedy)
    return DoctorPart("kafka", "external", ",".join(servers), True, detail)


def tasks(settings: Settings) -> DoctorPart:
    """The task queues, where other processes can see them."""
    url = settings.tasks.own_broker_url
    if settings.tasks.broker_url is None:
        return DoctorPart(
            "tasks", "embedded", None, True, "in the process; lost tasks are found again"
        )
    try:
        depths = task_queues(settings.tasks).depths()
    except BrokerAway as error:
        remedy = "start it, or see TASK_BROKER_URL and REDIS_URL"
        return failing("tasks", "external", None, str(error), remedy)
    dead = sum(depth.dead for depth in depths)
    waiting = sum(depth.waiting + depth.delayed for depth in depths)
    where = "on the redis above" if url is None else ""
    shown = None if url is None else _address(url.get_secret_value())
    counts = f"{waiting} waiting, {dead} dead"
    return DoctorPart("tasks", "external", shown, True, ", ".join(filter(None, (where, counts))))


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
        return failing("llm", "external", url, wrong, "start it, or see OPENAI_BASE_URL")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return failing("llm", "external", url, "does not take the key", "see OPENAI_API_KEY")
    return DoctorPart(
        "llm", "external", url, True, f"answers; {settings.translation.model} translates"
    )


def _address(url: str) -> str:
    """A broker's URL without user and password."""
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
