"""docker-compose.yml against the code: commands, variables, ports, health checks, dependencies."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.util import find_spec

import pytest
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
LASTING = [service for service in SERVICES if service.name != "minio-init"]
ALIASES = Settings.variables()
HTTP_PATHS = {"/healthz", "/metrics"}


def named(service: Service) -> str:
    return service.name


def test_each_role_is_one_service_of_its_name() -> None:
    assert {role: service.name for role, service in COMPOSITION.roles.items()} == {
        role: role for role in Role
    }
    assert len(ROLES) == sum(service.is_backlot for service in SERVICES)


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_the_variables_are_settings_that_are_accepted(service: Service) -> None:
    assert set(service.environment) <= ALIASES
    settings = load_settings(service.environment)
    assert settings.server.roles == {Role(service.name)}
    assert not settings.database.embedded
    assert not settings.auth.local
    assert settings.objects.bucket is not None
    assert settings.redis.url is not None
    assert settings.kafka.bootstrap_servers


@pytest.mark.parametrize("service", ROLES, ids=named)
def test_every_role_has_the_same_settings_but_its_own(service: Service) -> None:
    own = {"BACKLOT_ROLES", "TASK_THREADS", "SEAL_ANCHOR"}
    first = {key: value for key, value in ROLES[0].environment.items() if key not in own}
    assert {key: value for key, value in service.environment.items() if key not in own} == first


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_or_empty_secret_stops_it(name: str) -> None:
    for given in ({}, {name: ""}):
        with pytest.raises(VariableMissing, match=f"{name}: see the top of docker-compose.yml"):
            read_composition({**{n: text for n, text in SECRETS.items() if n != name}, **given})


def test_what_the_file_says_to_put_into_env_is_what_it_needs() -> None:
    head = COMPOSE_FILE.read_text().partition("\nname:")[0]
    (loop,) = re.findall(r"for name in ([A-Z_ ]+);", head)
    assert {f"{word}_PASSWORD" for word in loop.split()} | {"JWT_SECRET"} == set(SECRETS)
    assert 'echo "JWT_SECRET=' in head


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
    assert {service.image.rpartition(":")[2] for service in ROLES} == {project["version"]}


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
    usual = {"timescale": 5432, "redis": 6379, "minio": 9000}
    return (
        {usual[server.name]}
        if server.name in usual
        else {int(port) for port in re.findall(r"://:(\d+)", told)}
    )


def test_each_server_is_named_by_a_setting() -> None:
    named_servers = {host for service in ROLES for _, host, _ in _addresses(service)}
    assert named_servers == {"timescale", "redis", "kafka", "minio"}


def test_the_servers_take_the_passwords_that_the_roles_use() -> None:
    env = ROLES[0].environment
    postgres = COMPOSITION.services["timescale"].environment
    account = f"{postgres['POSTGRES_USER']}:{postgres['POSTGRES_PASSWORD']}"
    assert f"//{account}@" in env["DATABASE_URL"]
    assert env["DATABASE_URL"].endswith(f"/{postgres['POSTGRES_DB']}")
    redis = COMPOSITION.services["redis"]
    command = redis.given["command"]
    assert f":{command[command.index('--requirepass') + 1]}@" in env["REDIS_URL"]
    bucket = COMPOSITION.services["minio-init"].environment
    for name in ("S3_BUCKET", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
        assert bucket[name] == env[name]


def test_the_bucket_s_policy_is_of_the_bucket() -> None:
    policy = json.loads((PROJECT / "deploy" / "minio-policy.json").read_text())
    bucket = ROLES[0].environment["S3_BUCKET"]
    rights: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        rights.setdefault(statement["Resource"][0], set()).update(statement["Action"])
    assert set(rights) == {f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"}
    told = (PROJECT / "docs" / "operations.md").read_text()
    for action in set.union(*rights.values()) - {"s3:GetBucketLocation"}:
        assert action.removeprefix("s3:") in told


def test_unfinished_uploads_outlive_backlot_s_patience() -> None:
    kept = COMPOSITION.services["minio"].environment["MINIO_API_STALE_UPLOADS_EXPIRY"]
    assert seconds(kept) > load_settings(ROLES[0].environment).uploads.idle_days * 86_400


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
