"""How Kafka is reached: addresses, encryption, passwords."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from typing import Any

from infra.settings.adapters import KafkaSettings

RETRY_MS = 200

# It tells of every attempt, ten times a second; that Kafka is away is told as KafkaAway.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class KafkaAway(Exception):
    """Kafka did not take or give something in time; trying again later helps."""


@dataclass(frozen=True)
class KafkaOptions:
    """Where the brokers are, and how to speak to them; the password is not shown."""

    bootstrap_servers: tuple[str, ...]
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: KafkaSettings) -> KafkaOptions | None:
        """What is configured; None where there is no Kafka."""
        if not settings.bootstrap_servers:
            return None
        secret = settings.sasl_password
        return cls(
            settings.bootstrap_servers,
            settings.security_protocol,
            settings.sasl_mechanism,
            settings.sasl_username,
            None if secret is None else secret.get_secret_value(),
        )

    def client(self) -> dict[str, Any]:
        """What aiokafka's clients take."""
        encrypted = self.security_protocol.endswith("SSL")
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "client_id": "backlot",
            "retry_backoff_ms": RETRY_MS,
            "security_protocol": self.security_protocol,
            "ssl_context": ssl.create_default_context() if encrypted else None,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self.password,
        }
