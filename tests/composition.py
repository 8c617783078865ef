"""docker-compose.yml as Compose reads it: anchors merged, variables put in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]
COMPOSE_FILE = PROJECT / "docker-compose.yml"
# What `.env` has to hold, as the file itself says.
SECRETS = {
    "POSTGRES_PASSWORD": "of-postgres",
    "POSTGRES_APP_PASSWORD": "of-the-running-user",
    "REDIS_PASSWORD": "of-redis",
    "KEY_ENCRYPTION_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f0" * 2,
    "JWT_SECRET": "a secret that signs tokens in tests only",
    "WEB_SESSION_SECRET": "a secret that seals sessions in tests only",
    "S3_ACCESS_KEY_ID": "GK0123456789abcdef01234567",
    "S3_SECRET_ACCESS_KEY": "0123456789abcdef" * 4,
    "GARAGE_RPC_SECRET": "fedcba9876543210" * 4,
    "GARAGE_ADMIN_TOKEN": "of-garage-s-operators",
}
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<how>:?[-?])(?P<rest>[^}]*))?\})")
DURATION = re.compile(r"(\d+)(ms|s|m|h)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class VariableMissing(Exception):
    """A required variable is not set; the text is what the file says about it."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """The text with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced."""

    def value(match: re.Match[str]) -> str:
        name, how, rest = match["name"], match["how"], match["rest"]
        if name is None:
            return "$"
        found = variables.get(name)
        missing = not found if how and how.startswith(":") else found is None
        if missing and how and how.endswith("?"):
            raise VariableMissing(f"{name}: {rest}")
        return (rest or "") if missing else (found or "")

    return VARIABLE.sub(value, text)


def seconds(duration: str) -> float:
    """A duration such as 1m30s."""
    parts = DURATION.findall(duration)
    assert "".join(f"{number}{unit}" for number, unit in parts) == duration, duration
    return sum(int(number) * SECONDS[unit] for number, unit in parts)


@dataclass(frozen=True)
class Service:
    """One service; what it does not say is empty."""

    name: str
    given: Mapping[str, Any]

    @property
    def image(self) -> str:
        return str(self.given["image"])

    @property
    def environment(self) -> dict[str, str]:
        found = self.given.get("environment", {})
        assert all(isinstance(value, str) for value in found.values()), f"{self.name}: quote it"
        return dict(found)

    @property
    def is_role(self) -> bool:
        """Whether it runs a part of this program, and is no server beside it nor a preparation."""
        return "BACKLOT_ROLES" in self.environment

    @property
    def words(self) -> list[str]:
        """What runs in the container, with the Dockerfile's entrypoint when it has no other."""
        return [*self.given.get("entrypoint", ["backlot"]), *self.given.get("command", [])]

    @property
    def health(self) -> str:
        """What its health check runs, as one line."""
        return " ".join(self.given.get("healthcheck", {}).get("test", []))

    @property
    def depends_on(self) -> dict[str, str]:
        """The services that it waits for, and what for."""
        return {name: how["condition"] for name, how in self.given.get("depends_on", {}).items()}

    @property
    def mounts(self) -> list[tuple[str, str]]:
        """Each volume or path of the host, and where it is in the container."""
        volumes: Sequence[str] = self.given.get("volumes", [])
        return [(source, target) for source, target, *_ in (text.split(":") for text in volumes)]

    @property
    def ports(self) -> list[int]:
        """Its own ports that the host publishes."""
        return [int(text.rpartition(":")[2]) for text in self.given.get("ports", [])]


@dataclass(frozen=True)
class Composition:
    """The whole file with its variables put in."""

    document: Mapping[str, Any]
    services: Mapping[str, Service]

    @property
    def roles(self) -> dict[str, Service]:
        """The services of this program, by their role."""
        mine = (service for service in self.services.values() if service.is_role)
        return {service.environment["BACKLOT_ROLES"]: service for service in mine}


@cache
def _document() -> Any:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def read_composition(variables: Mapping[str, str] = SECRETS) -> Composition:
    """The file as Compose has it with these variables. Raises VariableMissing."""

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put_in(value) for key, value in node.items()}
        if isinstance(node, list):
            return [put_in(value) for value in node]
        return interpolate(node, variables) if isinstance(node, str) else node

    document = put_in(_document())
    services = {name: Service(name, given) for name, given in document["services"].items()}
    return Composition(document, services)
