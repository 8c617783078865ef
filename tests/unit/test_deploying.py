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
        *(
            "proxy",
            "migrations",
            "commands",
            "queries",
            "web",
            "projections",
            "workers",
            "relay",
            "consumers",
            "tasks",
        ),
        *("timescale", "redis", "kafka", "garage", "garage-init"),
    ]
    assert {row.strip("`") for row in rows("The services")} == set(COMPOSITION.services)


def test_every_volume_is_described() -> None:
    kept = {row.strip("`") for row in rows("What must be kept")}
    assert kept == {*COMPOSITION.document["volumes"], ".env"}


def test_every_variable_of_the_file_is_described() -> None:
    assert {name for name in USED if f"`{name}`" not in GUIDE} == set()


def test_every_variable_that_is_described_is_there() -> None:
    known = Settings.variables()
    told = set(re.findall(r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)`", GUIDE))
    assert told <= known | Settings.files().keys() | USED


def test_who_has_which_secret_is_told() -> None:
    section = GUIDE.partition("### Who has which secret\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section, re.MULTILINE)
    assert len(told) == 9
    for secrets, holders in told:
        named = set(re.findall(r"`([a-z-]+)`", holders))
        if holders.startswith("every role"):
            roles = {*COMPOSITION.roles}
            named = roles - named if " but " in holders else roles | named
        for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", secrets):
            services = {
                service.name
                for service in COMPOSITION.services.values()
                if service.environment.get(name)
            }
            if name == "OPENAI_API_KEY":
                # From backlot.env, where nobody says that it is not theirs.
                services = {r for r, s in COMPOSITION.roles.items() if name not in s.environment}
            assert services == named, name


def test_tokens_of_an_identity_provider_can_be_had_as_it_says() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    override = yaml.safe_load(block)
    takers = {r: s for r, s in COMPOSITION.roles.items() if "JWT_SECRET" in s.environment}
    assert set(override["services"]) == set(takers)
    for role, service in takers.items():
        more = override["services"][role]["environment"]
        settings = load_settings({**service.environment, **more})
        assert settings.auth.secret is None
        assert settings.auth.jwks_url == "https://id.example.com/jwks.json"
