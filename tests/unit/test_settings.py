"""What the environment may say, and the one line that it gets for saying something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Role, Settings, SettingsError, load_settings

LONG = "s" * 32


def test_nothing_set_is_the_embedded_shape() -> None:
    settings = load_settings({})
    assert settings.embedded_database
    assert settings.local_auth
    assert settings.roles == set(Role)
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.jwt_algorithms == {"HS256"}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = (Path(__file__).parents[2] / ".env.example").read_text()
    for field in Settings.model_fields.values():
        assert f"\n# {field.alias}=" in documented, f"{field.alias} is not in .env.example"
    values = dict(
        line.removeprefix("# ").split("=", 1)
        for line in documented.splitlines()
        if line.startswith("# ") and "=" in line and line[2].isupper()
    )
    assert set(values) == {field.alias for field in Settings.model_fields.values()}
    assert load_settings(values) == load_settings({})


def test_an_empty_variable_counts_as_unset() -> None:
    assert load_settings({"DATABASE_URL": "", "BACKLOT_PORT": ""}) == load_settings({})


def test_variables_of_other_programs_are_ignored() -> None:
    assert load_settings({"PATH": "/bin", "PORT": "1"}) == load_settings({})


def test_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("BACKLOT_PORT=8123\nLOG_LEVEL=debug\n")
    monkeypatch.setenv("BACKLOT_PORT", "9000")
    settings = load_settings()
    assert (settings.port, settings.log_level) == (9000, "debug")


def test_lists_are_separated_by_commas() -> None:
    settings = load_settings({"BACKLOT_ROLES": "commands, queries"})
    assert settings.roles == {Role.COMMANDS, Role.QUERIES}


def test_lock_nodes_are_separated_by_commas() -> None:
    urls = "redis://:hunter2@one:6379, rediss://two"
    settings = load_settings({"REDLOCK_URLS": urls, "REDIS_URL": "redis://one"})
    assert [url.get_secret_value() for url in settings.redlock_urls] == urls.split(", ")
    assert "hunter2" not in repr(settings)
    assert load_settings({}).redlock_urls == ()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("media.local", "http://media.local:8000"),
    ],
)
def test_the_public_url_follows_the_host(host: str, url: str) -> None:
    assert load_settings({"BACKLOT_HOST": host}).public_url == url


def test_a_configured_public_url_loses_its_slash() -> None:
    settings = load_settings({"BACKLOT_PUBLIC_URL": "https://media.example/"})
    assert settings.public_url == "https://media.example"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("BACKLOT_PORT", "eighty", "integer"),
        ("BACKLOT_PORT", "70000", "65535"),
        ("BACKLOT_ROLES", "cooks", "'commands', 'queries'"),
        ("BACKLOT_ROLES", " , ", "at least one"),
        ("BACKLOT_PUBLIC_URL", "media.example", "http://"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x", "postgresql://"),
        ("DATABASE_URL", "postgresql://u:hunter2%zz@db/x", "libpq"),
        ("REDIS_URL", "http://:hunter2@cache", "redis://"),
        ("REDIS_URL", "redis://u:hunter2@cache/first", "is not a Redis URL"),
        ("REDLOCK_URLS", "redis://:hunter2@one, two", "redis://"),
        ("REDLOCK_URLS", "redis://:hunter2@one/1,redis://one:6379/2", "one:6379 twice"),
        ("JWT_SECRET", "hunter2", "32 bytes"),
        ("JWT_PUBLIC_KEY", "hunter2", "PEM"),
        ("JWT_JWKS_URL", "file:///keys", "http://"),
        ("JWT_ALGORITHMS", "none", "'HS256'"),
        ("JWT_ALGORITHMS", "RS256", "another key"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("LOG_FORMAT", "xml", "'auto'"),
        ("MAX_UPLOAD_BYTES", "99999999999999", "less than or equal to"),
        ("S3_BUCKET", "no/bucket", "match"),
        ("S3_ENDPOINT_URL", "minio:9000", "http://"),
        ("S3_ENDPOINT_URL", "http://minio:ninety", "port could not"),
        ("S3_ENDPOINT_URL", "http://user:hunter2@minio:9000", "no user"),
        ("S3_PUBLIC_ENDPOINT_URL", "https://media.example/bucket", "S3_BUCKET"),
        ("S3_REGION", "eu west", "match"),
        ("S3_ADDRESSING_STYLE", "both", "'path'"),
        ("COMMAND_RETRIES", "-1", "greater"),
        ("PROJECTION_POLL_SECONDS", "0", "greater"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(name: str, value: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert why in text
    assert "\n" not in text
    assert "hunter2" not in text


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"BACKLOT_PORT: .*; LOG_LEVEL: "):
        load_settings({"BACKLOT_PORT": "x", "LOG_LEVEL": "x"})


def test_two_ways_to_verify_tokens_are_refused() -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET and JWT_JWKS_URL: set only one"):
        load_settings({"JWT_SECRET": LONG, "JWT_JWKS_URL": "https://id.example/jwks"})


S3 = {"S3_BUCKET": "media", "S3_ACCESS_KEY_ID": "AKID", "S3_SECRET_ACCESS_KEY": "hunter2"}


def test_a_bucket_and_nothing_else_is_enough_on_aws() -> None:
    settings = load_settings({"S3_BUCKET": "media"})
    assert (settings.s3_bucket, settings.s3_endpoint_url) == ("media", None)
    assert load_settings({**S3, "S3_ENDPOINT_URL": "http://minio:9000/"}).s3_endpoint_url == (
        "http://minio:9000"
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"S3_SECRET_ACCESS_KEY": ""}, "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: set both"),
        ({"S3_ACCESS_KEY_ID": ""}, "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY: set both"),
        ({"S3_BUCKET": ""}, "S3_BUCKET: set it too"),
        ({"PART_SIZE_BYTES": "5242879"}, "PART_SIZE_BYTES: S3 takes parts of at least 5242880"),
        ({"URL_TTL_SECONDS": "604801"}, "URL_TTL_SECONDS: URLs of S3 work for at most 604800"),
    ],
)
def test_what_s3_could_not_do_is_refused(changed: dict[str, str], told: str) -> None:
    load_settings({**S3, "PART_SIZE_BYTES": "5242880", "URL_TTL_SECONDS": "604800"})
    with pytest.raises(SettingsError) as caught:
        load_settings({**S3, **changed})
    assert str(caught.value).startswith(told)
    assert "hunter2" not in str(caught.value)


def test_secrets_stay_out_of_representations() -> None:
    settings = load_settings(
        {**S3, "JWT_SECRET": LONG, "DATABASE_URL": "postgres://u:hunter2@db/x"}
    )
    assert LONG not in repr(settings)
    assert "hunter2" not in repr(settings)
