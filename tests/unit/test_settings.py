"""What the environment may say, and the one line that it gets for saying something else."""

from __future__ import annotations

import base64
import random
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.settings import Role, Settings, SettingsError, load_settings
from infra.settings.values import secret_weakness
from tests.support import PROJECT

LONG = "signs the tokens of these tests only"


def test_nothing_set_is_the_embedded_shape() -> None:
    settings = load_settings({})
    assert settings.database.embedded
    assert settings.auth.local
    assert settings.server.roles == set(Role)
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.server.public_url == "http://127.0.0.1:8000"
    assert settings.auth.algorithms == {"HS256"}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = (Path(__file__).parents[2] / ".env.example").read_text()
    for variable in Settings.variables():
        assert f"\n# {variable}=" in documented, f"{variable} is not in .env.example"
    values = dict(
        line.removeprefix("# ").split("=", 1)
        for line in documented.splitlines()
        if line.startswith("# ") and "=" in line and line[2].isupper()
    )
    assert set(values) == Settings.variables()
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
    assert (settings.server.port, settings.logs.level) == (9000, "debug")


def test_names_of_variables_are_read_in_any_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("log_level=debug\nbacklot_port=8123\n")
    monkeypatch.setenv("BACKLOT_PORT", "")
    settings = load_settings()
    assert (settings.server.port, settings.logs.level) == (8123, "debug")


def test_what_is_set_is_known_by_its_variable() -> None:
    given = {"REDIS_URL": "redis://one", "BACKLOT_PORT": "8123", "LOG_LEVEL": "", "PATH": "/bin"}
    assert load_settings(given).given() == {"REDIS_URL", "BACKLOT_PORT"}


def test_a_wrong_variable_of_two_groups_is_told_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"REDIS_URL": "http://cache"})
    assert str(caught.value).count("REDIS_URL") == 1


def test_tasks_go_through_redis_unless_another_broker_is_named() -> None:
    redis, rabbitmq = {"REDIS_URL": "redis://one"}, {"TASK_BROKER_URL": "amqp://two"}
    for given, url in [(redis, "redis://one"), (redis | rabbitmq, "amqp://two")]:
        broker = load_settings(given).tasks.broker_url
        assert broker is not None
        assert broker.get_secret_value() == url


def test_a_group_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings({}).server.port = 1  # type: ignore[misc]


def test_lists_are_separated_by_commas() -> None:
    settings = load_settings({"BACKLOT_ROLES": "commands, queries"})
    assert settings.server.roles == {Role.COMMANDS, Role.QUERIES}


@pytest.mark.parametrize(
    ("cores", "given", "processes"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (64, {}, 4),
        (2, {"BACKLOT_PROCESSES": "7"}, 7),
        # One container, one process.
        (8, {"BACKLOT_ROLES": "commands"}, 1),
        (8, {"BACKLOT_ROLES": "commands", "BACKLOT_PROCESSES": "2"}, 2),
        # Nothing there that others could take over.
        (8, {"BACKLOT_ROLES": "projections,workers", "BACKLOT_PROCESSES": "2"}, 1),
    ],
)
def test_a_program_with_every_role_uses_several_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: dict[str, str], processes: int
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert load_settings(given).server.processes == processes


def test_elsewhere_than_on_linux_one_process_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert load_settings({}).server.processes == 1


def test_readers_choose_among_several_languages_or_not_at_all() -> None:
    def choice(**given: str) -> tuple[str, ...]:
        return load_settings(given).translation.on_demand

    assert choice() == choice(TRANSLATION_TARGETS="en") == ()
    assert choice(TRANSLATION_TARGETS="de, fr,en,de") == ("en", "de", "fr")
    assert choice(TRANSLATION_TARGETS="en", TRANSLATION_TARGET_LANGUAGE="de") == ("de", "en")


def test_watched_words_come_from_a_list_and_a_file(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# not this\n\nbuy now, please\n  傻瓜  \n")
    given = {"WATCHED_WORDS": "bad, worse", "WATCHED_WORDS_FILE": str(words)}
    assert load_settings(given).moderation.words == ("bad", "worse", "buy now, please", "傻瓜")
    assert load_settings({}).moderation.words == ()
    words.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="WATCHED_WORDS_FILE: can't be read as UTF-8"):
        load_settings(given)


def test_lock_nodes_are_separated_by_commas() -> None:
    urls = "redis://:hunter2@one:6379, rediss://two"
    settings = load_settings({"REDLOCK_URLS": urls, "REDIS_URL": "redis://one"})
    assert [url.get_secret_value() for url in settings.redis.lock_urls] == urls.split(", ")
    assert "hunter2" not in repr(settings)
    assert load_settings({}).redis.lock_urls == ()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("media.local", "http://media.local:8000"),
    ],
)
def test_the_public_url_follows_the_host(host: str, url: str) -> None:
    assert load_settings({"BACKLOT_HOST": host}).server.public_url == url


def test_a_configured_public_url_loses_its_slash() -> None:
    settings = load_settings({"BACKLOT_PUBLIC_URL": "https://media.example/"})
    assert settings.server.public_url == "https://media.example"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("BACKLOT_PORT", "eighty", "integer"),
        ("BACKLOT_PORT", "70000", "65535"),
        ("BACKLOT_ROLES", "cooks", "'commands', 'queries'"),
        ("BACKLOT_ROLES", " , ", "at least one"),
        ("BACKLOT_PUBLIC_URL", "media.example", "http://"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x", "postgresql://"),
        ("DATABASE_LISTEN", "localhost:5433", "an IP address"),
        ("DATABASE_LISTEN", "0", "from 1 to 65535"),
        ("DATABASE_LISTEN", "127.0.0.1", "from 1 to 65535"),
        ("DATABASE_LISTEN", "127.0.0.1:65536", "from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u:hunter2%zz@db/x", "libpq"),
        ("REDIS_URL", "http://:hunter2@cache", "redis://"),
        ("REDIS_URL", "redis://u:hunter2@cache/first", "is not a Redis URL"),
        ("REDLOCK_URLS", "redis://:hunter2@one, two", "redis://"),
        ("REDLOCK_URLS", "redis://:hunter2@one/1,redis://one:6379/2", "one:6379 twice"),
        ("JWT_SECRET", "hunter2", "32 bytes"),
        ("JWT_SECRET", "hunter2" * 6, "repeats a pattern"),
        ("JWT_PUBLIC_KEY", "hunter2", "PEM"),
        ("JWT_JWKS_URL", "file:///keys", "http://"),
        ("JWT_ALGORITHMS", "none", "'HS256'"),
        ("JWT_ALGORITHMS", "RS256", "another key"),
        ("ADMIN_PORT", "0", "greater"),
        ("ADMIN_PORT", "8000", "another one than BACKLOT_PORT"),
        ("JWT_MAX_LIFETIME_SECONDS", "59", "greater"),
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
        ("TRANSLATION_TARGETS", "de,french", "not 'french'"),
        ("TRANSLATION_TARGETS", "de,FR", "ISO 639-1"),
        ("TRANSLATION_TARGETS", ",".join(f"a{chr(97 + n)}" for n in range(17)), "16 languages"),
        ("TRANSLATION_GLOSSARY", ",".join(f"t{n}" for n in range(201)), "200 terms"),
        ("TRANSLATION_GLOSSARY", f"Backlot,{'x' * 61}", "60 characters"),
        ("TRANSLATION_GLOSSARY", "Backlot, !!", "a letter or a digit"),
        ("WATCHED_WORDS", ",".join(f"w{n}" for n in range(2001)), "2000 words"),
        ("WATCHED_WORDS", f"bad,{'x' * 101}", "100 characters"),
        ("WATCHED_WORDS", "bad,\u200b", "can be seen"),
        ("WATCHED_WORDS_FILE", "/nowhere/words.txt", "can't be read"),
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


def test_keys_of_a_provider_need_an_audience() -> None:
    jwks = {"JWT_JWKS_URL": "https://id.example/jwks"}
    assert load_settings({**jwks, "JWT_AUDIENCE": "backlot"}).auth.audience == "backlot"
    with pytest.raises(SettingsError) as caught:
        load_settings(jwks)
    assert str(caught.value).startswith("JWT_AUDIENCE: set it too with JWT_JWKS_URL")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        ("s" * 40, "repeats a pattern"),
        ("changeme" * 5, "repeats a pattern"),
        ("ab12" * 10, "repeats a pattern"),
        ("0123456789abcdef" * 4, "repeats a pattern"),
        ("abcdefghijklmnopqrstuvwxyz0123456789", "repeats a pattern"),
        ("98765432109876543210987654321098", "repeats a pattern"),
        ("changeme-changethis-secret-password", "words that every guesser tries"),
        ("your-256-bit-secret-change-in-production", "words that every guesser tries"),
        ("Super_Secret_JWT_Signing_Key_Change_Me!", "words that every guesser tries"),
        ("CorrectHorseBatteryStaple_Password", "words that every guesser tries"),
        ("qwertyuiopasdfghjklzxcvbnm1234567890", "words that every guesser tries"),
        ("backlot example secret: please replace this", "words that every guesser tries"),
    ],
)
def test_a_secret_that_can_be_guessed_is_refused(secret: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^JWT_SECRET: .*{why}") as caught:
        load_settings({"JWT_SECRET": secret})
    assert secret not in str(caught.value)


@pytest.mark.parametrize("length", [16, 24, 32, 64])
def test_random_secrets_are_taken(length: int) -> None:
    for seed in range(300):
        drawn = random.Random(seed).randbytes(length)
        made = [drawn.hex(), *([base64.b64encode(drawn).decode()] if length > 16 else [])]
        assert [weak for secret in made if (weak := secret_weakness(secret))] == []


def test_no_example_of_ours_passes_for_a_secret() -> None:
    for page in (".env.example", "README.md", "docker-compose.yml", "docs/deploying.md"):
        text = (PROJECT / page).read_text()
        for value in re.findall(r"JWT_SECRET=([^\s\"$]{32,})", text):
            assert secret_weakness(value), page


S3 = {"S3_BUCKET": "media", "S3_ACCESS_KEY_ID": "AKID", "S3_SECRET_ACCESS_KEY": "hunter2"}


def test_a_bucket_and_nothing_else_is_enough_on_aws() -> None:
    settings = load_settings({"S3_BUCKET": "media"})
    assert (settings.objects.bucket, settings.objects.endpoint_url) == ("media", None)
    assert load_settings({**S3, "S3_ENDPOINT_URL": "http://minio:9000/"}).objects.endpoint_url == (
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


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    secret, url = tmp_path / "jwt", tmp_path / "database"
    secret.write_text(f"{LONG}\n")
    url.write_text("postgresql://backlot:hunter2@db/backlot\n")
    settings = load_settings({"JWT_SECRET_FILE": str(secret), "DATABASE_URL_FILE": str(url)})
    assert settings == load_settings(
        {"JWT_SECRET": LONG, "DATABASE_URL": "postgresql://backlot:hunter2@db/backlot"}
    )


def test_every_secret_may_lie_in_a_file() -> None:
    assert set(Settings.files()) >= {
        *("DATABASE_URL_FILE", "DATABASE_OWNER_URL_FILE", "TIMESCALE_URL_FILE", "REDIS_URL_FILE"),
        *("REDLOCK_URLS_FILE", "JWT_SECRET_FILE", "JWT_PUBLIC_KEY_FILE", "S3_ACCESS_KEY_ID_FILE"),
        *("S3_SECRET_ACCESS_KEY_FILE", "OPENAI_API_KEY_FILE", "KAFKA_SASL_PASSWORD_FILE"),
        *("KAFKA_SSL_KEY_PASSWORD_FILE", "TASK_BROKER_URL_FILE"),
    }
    # A setting of that name would be read twice, as two things.
    assert Settings.files().keys().isdisjoint(Settings.variables())


def test_a_secret_and_its_file_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text(LONG)
    with pytest.raises(SettingsError) as caught:
        load_settings({"JWT_SECRET": LONG, "JWT_SECRET_FILE": str(tmp_path / "jwt")})
    assert str(caught.value) == "JWT_SECRET and JWT_SECRET_FILE: set only one of them"


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file"), (b" \n", "it is empty"), (b"\xff", "UTF-8"), (b"x" * 65537, "65536")],
)
def test_a_file_without_a_secret_is_told(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"OPENAI_API_KEY_FILE: {path} can't be used: .*{why}"):
        load_settings({"OPENAI_API_KEY_FILE": str(path)})


def test_a_wrong_secret_of_a_file_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "s3").write_text("hunter2")
    with pytest.raises(SettingsError) as caught:
        load_settings({"JWT_SECRET_FILE": str(tmp_path / "s3")})
    assert "hunter2" not in str(caught.value)


def test_files_of_certificates_are_part_of_the_url_of_an_encrypted_redis() -> None:
    files = {"REDIS_CA_FILE": "/pki/ca.pem", "REDIS_CERT_FILE": "/c.pem", "REDIS_KEY_FILE": "/k"}
    urls = {"REDIS_URL": "rediss://:p%2Cw@one/1", "REDLOCK_URLS": "rediss://two,redis://three"}
    settings = load_settings({**files, **urls})
    query = "ssl_ca_certs=%2Fpki%2Fca.pem&ssl_certfile=%2Fc.pem&ssl_keyfile=%2Fk"
    told = [settings.redis.url, settings.tasks.broker_url, *settings.redis.lock_urls]
    assert [url.get_secret_value() for url in told if url] == [
        *(f"rediss://:p%2Cw@one/1?{query}",) * 2,
        f"rediss://two?{query}",
        "redis://three",
    ]
    own = "rediss://one?ssl_ca_certs=%2Fmine.pem"
    redis = load_settings({"REDIS_CA_FILE": "/pki/ca.pem", "REDIS_URL": own}).redis
    assert redis.url is not None
    assert redis.url.get_secret_value() == own


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"REDIS_CERT_FILE": "/c"}, "REDIS_CERT_FILE and REDIS_KEY_FILE: set both or neither"),
        ({"KAFKA_SSL_CERT_FILE": "/c"}, "KAFKA_SSL_CERT_FILE and KAFKA_SSL_KEY_FILE: set both"),
        ({"KAFKA_SSL_CA_FILE": "/c"}, "KAFKA_SECURITY_PROTOCOL: SSL or SASL_SSL"),
        ({"KAFKA_SSL_KEY_PASSWORD": "hunter2"}, "KAFKA_SSL_KEY_FILE: set it too"),
        ({"DATABASE_OWNER_URL": "postgresql://owner@db/b"}, "DATABASE_URL: set it too"),
        ({"DATABASE_URL": "postgresql://db/b", "DATABASE_LISTEN": "5433"}, "DATABASE_LISTEN: the"),
    ],
)
def test_half_a_trust_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings(given)


@pytest.mark.parametrize(
    ("said", "address", "is_loopback"),
    [
        ("5433", "127.0.0.1:5433", True),
        (" 127.0.0.2:5433 ", "127.0.0.2:5433", True),
        ("[::1]:5433", "[::1]:5433", True),
        ("0.0.0.0:5433", "0.0.0.0:5433", False),
    ],
)
def test_where_the_embedded_database_listens(said: str, address: str, is_loopback: bool) -> None:
    listen = load_settings({"DATABASE_LISTEN": said}).database.listen
    assert listen is not None
    assert (str(listen), listen.is_loopback) == (address, is_loopback)
    assert load_settings({}).database.listen is None
