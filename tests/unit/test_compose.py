"""docker-compose.yml against the code: commands, variables, ports, health checks, dependencies."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from dotenv import dotenv_values
from dramatiq.cli import make_argument_parser
from typer.testing import CliRunner

from backlot.cli import app
from infra.settings import Role, Settings, load_settings
from tests.composition import (
    COMPOSE_FILE,
    PROJECT,
    SECRETS,
    Service,
    VariableMissing,
    read_composition,
    seconds,
)

COMPOSITION = read_composition()
SERVICES = list(COMPOSITION.services.values())
ROLES = list(COMPOSITION.roles.values())
PREPARING = ("migrations", "garage-init")
LASTING = [service for service in SERVICES if service.name not in PREPARING]
# The pages have none of their own: they ask the APIs.
WITH_DATA = {*map(str, Role)} - {"web"}
# Which secret is for whom; all that others could do with it, they can't.
HOLDERS = {
    "KEY_ENCRYPTION_KEY": WITH_DATA,
    "JWT_SECRET": {"commands", "queries"},
    "WEB_SESSION_SECRET": {"web"},
    "REDIS_URL": WITH_DATA - {"relay"},
    "S3_ACCESS_KEY_ID": {"commands", "queries", "workers", "tasks", "garage-init"},
    "S3_SECRET_ACCESS_KEY": {"commands", "queries", "workers", "tasks", "garage-init"},
    "DATABASE_URL": WITH_DATA | {"migrations"},
    "DATABASE_OWNER_URL": {"migrations"},
    "GARAGE_ADMIN_TOKEN": {"garage", "garage-init"},
    "GARAGE_RPC_SECRET": {"garage"},
    "POSTGRES_PASSWORD": {"timescale"},
}
WITH_BUCKET = HOLDERS["S3_ACCESS_KEY_ID"] | {"web"}
OF_OBJECTS = {"S3_BUCKET", "S3_REGION", "S3_ENDPOINT_URL", "S3_PUBLIC_ENDPOINT_URL"}
ALIASES = Settings.variables()
HTTP_PATHS = {"/healthz", "/metrics"}


def named(service: Service) -> str:
    return service.name


def test_each_role_is_one_service_of_its_name() -> None:
    assert {role: service.name for role, service in COMPOSITION.roles.items()} == {
        role: role for role in Role
    }


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_the_variables_are_settings_that_are_accepted(service: Service) -> None:
    assert set(service.environment) <= ALIASES
    settings = load_settings(service.environment)
    assert settings.server.roles == {Role(service.name)}
    assert settings.database.embedded is (service.name == "web")
    assert (settings.keys.key_encryption_key is None) is (service.name == "web")
    assert settings.auth.local is (service.name not in HOLDERS["JWT_SECRET"])
    assert (settings.objects.bucket is None) is (service.name not in WITH_BUCKET)
    assert (settings.redis.url is None) is (service.name not in HOLDERS["REDIS_URL"])
    assert settings.kafka.bootstrap_servers


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_every_role_has_the_same_settings_but_its_own(service: Service) -> None:
    own = {"BACKLOT_ROLES", "TASK_THREADS", "OPENAI_API_KEY", "SEAL_ANCHOR", *HOLDERS, *OF_OBJECTS}
    own |= {"WEB_API_URLS", "WEB_SITE"}
    first = {key: value for key, value in ROLES[0].environment.items() if key not in own}
    assert {key: value for key, value in service.environment.items() if key not in own} == first


@pytest.mark.parametrize("secret", HOLDERS)
def test_a_secret_is_known_to_who_needs_it_and_to_nobody_else(secret: str) -> None:
    holders = {service.name for service in SERVICES if service.environment.get(secret)}
    assert holders == HOLDERS[secret]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_in_no_other_variable_or_argument(name: str) -> None:
    """Where it appears at all is a variable that is known as a secret, or Redis's own argument."""
    known = {*HOLDERS, "REDISCLI_AUTH"}
    for service in SERVICES:
        told = {v for v, text in service.environment.items() if SECRETS[name] in text}
        assert told <= known, service.name
        rest = {key: value for key, value in service.given.items() if key != "environment"}
        assert (SECRETS[name] in json.dumps(rest)) is (
            (name, service.name) == ("REDIS_PASSWORD", "redis")
        )


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_the_key_of_the_language_model_is_kept_from_who_calls_none(service: Service) -> None:
    """`backlot.env` has it for everybody; what is empty here counts as unset, and wins."""
    kept = service.environment.get("OPENAI_API_KEY") == ""
    assert kept is (service.name in ("commands", "projections", "relay", "web"))


@pytest.mark.parametrize("service", SERVICES, ids=named)
def test_nobody_has_a_capability_or_can_get_one(service: Service) -> None:
    assert service.given["cap_drop"] == ["ALL"]
    assert service.given["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "devices", "pid", "network_mode"} & service.given.keys()


@pytest.mark.parametrize("service", SERVICES, ids=named)
def test_what_is_not_a_volume_is_read_only(service: Service) -> None:
    # Kafka's image writes its configuration beside its programs.
    assert service.given.get("read_only", False) is (service.name != "kafka")


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_or_empty_secret_stops_it(name: str) -> None:
    for given in ({}, {name: ""}):
        with pytest.raises(VariableMissing, match=f"{name}: see the top of docker-compose.yml"):
            read_composition({**{n: text for n, text in SECRETS.items() if n != name}, **given})


def test_what_the_file_says_to_put_into_env_is_what_it_needs() -> None:
    head = COMPOSE_FILE.read_text().partition("\nname:")[0]
    passwords, others = re.findall(r"for name in ([A-Z0-9_ ]+);", head)
    named_there = {f"{word}_PASSWORD" for word in passwords.split()} | {*others.split()}
    assert named_there | {"S3_ACCESS_KEY_ID"} == set(SECRETS)


def test_the_line_that_makes_the_secrets_makes_good_ones(tmp_path: Path) -> None:
    """Each is random, of its server's form, and fit to be a part of a URL."""
    head = COMPOSE_FILE.read_text().partition("\nname:")[0]
    lines = [line.removeprefix("#   ") for line in head.splitlines() if ".env" in line]
    script = "\n".join(line for line in lines if line.startswith(("for ", "echo ")))
    made = []
    for _ in range(2):
        subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True)
        made.append(dotenv_values(tmp_path / ".env"))
    assert made[0].keys() == SECRETS.keys()
    for name, text in made[0].items():
        assert text != made[1][name]
        assert re.fullmatch(r"GK[0-9a-f]{24}|[0-9a-f]{48}|[0-9a-f]{64}", text or ""), name
    assert (made[0]["S3_ACCESS_KEY_ID"] or "").startswith("GK")
    read_composition({name: text or "" for name, text in made[0].items()})


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_its_command_exists(service: Service) -> None:
    program, *arguments = service.words
    if program == "backlot":
        shown = CliRunner().invoke(app, [*arguments, "--help"])
        assert shown.exit_code == 0, shown.output
    else:
        assert program == "dramatiq"
        options = _dramatiq_options(arguments)
        assert find_spec(options["broker"]) is not None


def _dramatiq_options(arguments: list[str]) -> dict[str, str]:
    parsed = make_argument_parser().parse_args(arguments)  # type: ignore[no-untyped-call]
    return {name: str(value) for name, value in vars(parsed).items()}


def test_tasks_get_the_threads_and_the_time_that_the_settings_say() -> None:
    for variables in (SECRETS, {**SECRETS, "TASK_THREADS": "3"}):
        tasks = read_composition(variables).services["tasks"]
        options, settings = _dramatiq_options(tasks.words[1:]), load_settings(tasks.environment)
        assert int(options["threads"]) == settings.tasks.threads
        # Each process would serve its metrics at the same port.
        assert options["processes"] == "1"
        patience = int(options["worker_shutdown_timeout"]) / 1000
        assert settings.tasks.stop_seconds < patience < seconds(tasks.given["stop_grace_period"])


@pytest.mark.parametrize("service", SERVICES, ids=named)
def test_images_are_pinned(service: Service) -> None:
    name, _, tag = service.image.rpartition(":")
    assert name
    assert re.search(r"\d+\.\d+\.\d+|RELEASE\.\d{4}-\d{2}-\d{2}T", tag), service.image
    assert "latest" not in tag


def test_our_images_carry_the_version_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    ours = [service for service in SERVICES if "build" in service.given]
    assert {service.image.rpartition(":")[2] for service in ours} == {project["version"]}


@pytest.mark.parametrize("service", SERVICES, ids=named)
def test_what_it_waits_for_is_there_and_can_become_so(service: Service) -> None:
    for name, condition in service.depends_on.items():
        awaited = COMPOSITION.services[name]
        if condition == "service_healthy":
            assert awaited.health, f"{name} has no health check"
        else:
            assert condition == "service_completed_successfully"
            assert awaited.given["restart"].startswith("on-failure")


@pytest.mark.parametrize("service", LASTING, ids=named)
def test_what_lasts_is_watched_bounded_and_started_again(service: Service) -> None:
    assert service.health
    assert service.given["restart"] == "unless-stopped"
    assert service.given["deploy"]["resources"]["limits"]["memory"]
    assert seconds(service.given["stop_grace_period"]) >= 30
    check = service.given["healthcheck"]
    assert seconds(check["timeout"]) <= seconds(check["interval"])


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_health_checks_ask_our_port_for_a_path_that_exists(service: Service) -> None:
    (asked,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", service.health)
    assert asked[0] == service.environment["BACKLOT_PORT"]
    assert asked[1] in HTTP_PATHS
    compile(service.given["healthcheck"]["test"][3], "health check", "exec")


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_a_role_keeps_nothing_and_may_do_little(service: Service) -> None:
    assert service.given["read_only"] is True
    assert service.given["cap_drop"] == ["ALL"]
    dockerfile = (PROJECT / "Dockerfile").read_text()
    (data,) = re.findall(r"BACKLOT_DATA_DIR=(\S+)", dockerfile)
    (user,) = set(re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE))
    assert f"{data}:uid={user},gid={user},mode=0700" in service.given["tmpfs"]


def test_addresses_lead_to_services_that_share_a_network() -> None:
    for service in ROLES:
        for variable, host, port in _addresses(service):
            server = COMPOSITION.services[host]
            networks = set(service.given["networks"]) & set(server.given["networks"])
            assert networks, f"{service.name} cannot reach {variable}"
            assert port in _listens(server), f"{variable}: {host} does not listen on {port}"


def _addresses(service: Service) -> list[tuple[str, str, int]]:
    """Every host and port of the composition that a setting of it names."""
    names = "|".join(COMPOSITION.services)
    return [
        (variable, host, int(port))
        for variable, text in service.environment.items()
        for host, port in re.findall(rf"(?:^|[/@,])({names}):(\d+)", text)
    ]


def _listens(server: Service) -> set[int]:
    told = json.dumps([server.environment, server.words])
    garage = tomllib.loads((PROJECT / "deploy" / "garage.toml").read_text())
    objects = int(garage["s3_api"]["api_bind_addr"].rpartition(":")[2])
    usual = {"timescale": 5432, "redis": 6379, "garage": objects}
    if server.name in usual:
        return {usual[server.name]}
    if server.name in COMPOSITION.roles:
        return {int(server.environment[name]) for name in ("BACKLOT_PORT", "ADMIN_PORT")}
    return {int(port) for port in re.findall(r"://:(\d+)", told)}


def test_each_server_is_named_by_a_setting() -> None:
    named_servers = {host for service in ROLES for _, host, _ in _addresses(service)}
    assert named_servers == {"timescale", "redis", "kafka", "garage", "queries", "commands"}


def test_the_servers_take_the_passwords_that_the_roles_use() -> None:
    env = ROLES[0].environment
    postgres = COMPOSITION.services["timescale"].environment
    owner = COMPOSITION.services["migrations"].environment["DATABASE_OWNER_URL"]
    account = f"{postgres['POSTGRES_USER']}:{postgres['POSTGRES_PASSWORD']}"
    assert f"//{account}@" in owner
    for url in (owner, env["DATABASE_URL"]):
        assert url.endswith(f"@timescale:5432/{postgres['POSTGRES_DB']}")
    # Another user, whom the migrations make with the password that is in the URL.
    assert f"//backlot_app:{SECRETS['POSTGRES_APP_PASSWORD']}@" in env["DATABASE_URL"]
    redis = COMPOSITION.services["redis"]
    command = redis.given["command"]
    assert f":{command[command.index('--requirepass') + 1]}@" in env["REDIS_URL"]
    bucket = COMPOSITION.services["garage-init"].environment
    for name in ("S3_BUCKET", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
        assert bucket[name] == env[name]


def test_the_object_store_is_configured_as_the_roles_expect() -> None:
    garage = tomllib.loads((PROJECT / "deploy" / "garage.toml").read_text())
    env = ROLES[0].environment
    assert garage["s3_api"]["s3_region"] == env["S3_REGION"]
    # Acknowledged means on the disk.
    assert (garage["metadata_fsync"], garage["data_fsync"]) == (True, True)
    ((volume, target), *_) = COMPOSITION.services["garage"].mounts
    assert volume == "garage"
    assert all(garage[f"{kind}_dir"].startswith(f"{target}/") for kind in ("metadata", "data"))
    admin = COMPOSITION.services["garage-init"].environment["GARAGE_ADMIN_URL"]
    assert admin.rpartition(":")[2] == garage["admin"]["api_bind_addr"].rpartition(":")[2]
    # No secret stands in a file that is committed.
    assert not [key for table in (garage, garage["admin"]) for key in table if "secret" in key]


def test_every_role_waits_for_the_tables() -> None:
    for service in ROLES:
        if service.name == "web":
            assert {"commands", "queries"} == set(service.depends_on)
        else:
            assert service.depends_on["migrations"] == "service_completed_successfully"
    assert COMPOSITION.services["migrations"].words == ["backlot", "migrate"]


def test_redis_never_evicts_a_task() -> None:
    command = COMPOSITION.services["redis"].given["command"]
    assert command[command.index("--maxmemory-policy") + 1].startswith("volatile-")


@pytest.mark.parametrize("service", SERVICES, ids=named)
def test_volumes_are_declared_and_files_exist(service: Service) -> None:
    for source, target in service.mounts:
        assert target.startswith("/")
        if source.startswith("."):
            assert (PROJECT / source).exists()
        else:
            assert source in COMPOSITION.document["volumes"]


@pytest.mark.parametrize("name", COMPOSITION.document["volumes"])
def test_a_volume_is_used(name: str) -> None:
    assert any(name == source for service in SERVICES for source, _ in service.mounts)


def test_only_the_proxy_is_reached_from_outside() -> None:
    published = {service.name: service.ports for service in SERVICES if service.ports}
    assert list(published) == ["proxy"]
    for text in COMPOSITION.services["proxy"].given["ports"]:
        assert text.startswith("127.0.0.1:"), "whoever opens it to others does so on purpose"
    assert COMPOSITION.services["proxy"].given["networks"] == ["edge"]
