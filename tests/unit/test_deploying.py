"""What docs/deploying.md tells operators, against the composition."""

from __future__ import annotations

import re

import yaml

from infra.settings import Settings, load_settings
from tests.composition import COMPOSE_FILE, PROJECT, read_composition

GUIDE = (PROJECT / "docs" / "deploying.md").read_text()
COMPOSITION = read_composition()
USED = set(re.findall(r"\$\{([A-Z][A-Z0-9_]+)", COMPOSE_FILE.read_text()))


def rows(heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    section = GUIDE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)


def test_every_service_is_described() -> None:
    assert [row.strip("`") for row in rows("The services")] == [
        *("proxy", "commands", "queries", "projections", "workers", "relay", "consumers", "tasks"),
        *("timescale", "redis", "kafka", "minio", "minio-init"),
    ]
    assert {row.strip("`") for row in rows("The services")} == set(COMPOSITION.services)


def test_every_volume_is_described() -> None:
    kept = {row.strip("`") for row in rows("What must be kept")}
    assert kept == {*COMPOSITION.document["volumes"], ".env"}


def test_every_variable_of_the_file_is_described() -> None:
    assert {name for name in USED if f"`{name}`" not in GUIDE} == set()


def test_every_variable_that_is_described_is_there() -> None:
    known = Settings.variables()
    of_servers = {"MINIO_API_CORS_ALLOW_ORIGIN"}
    told = set(re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)`", GUIDE))
    assert told <= known | USED | of_servers


def test_tokens_of_an_identity_provider_can_be_had_as_it_says() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    override = yaml.safe_load(block)
    assert set(override["services"]) == set(COMPOSITION.roles)
    for role, service in COMPOSITION.roles.items():
        more = override["services"][role]["environment"]
        settings = load_settings({**service.environment, **more})
        assert settings.auth.secret is None
        assert settings.auth.jwks_url == "https://id.example.com/jwks.json"
