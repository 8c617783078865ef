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
        ("JWT_SECRET", "hunter2", "32 bytes"),
        ("JWT_PUBLIC_KEY", "hunter2", "PEM"),
        ("JWT_JWKS_URL", "file:///keys", "http://"),
        ("JWT_ALGORITHMS", "none", "'HS256'"),
        ("JWT_ALGORITHMS", "RS256", "another key"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("LOG_FORMAT", "xml", "'auto'"),
        ("MAX_UPLOAD_BYTES", "99999999999999", "less than or equal to"),
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


def test_secrets_stay_out_of_representations() -> None:
    settings = load_settings({"JWT_SECRET": LONG, "DATABASE_URL": "postgres://u:hunter2@db/x"})
    assert LONG not in repr(settings)
    assert "hunter2" not in repr(settings)
