"""The command line: data on stdout, one line on stderr for what is wrong."""

from __future__ import annotations

import json
import sys
import tomllib
from datetime import timedelta
from io import StringIO
from pathlib import Path

import jwt
import pytest
import typer.main
from typer.main import get_command

from backlot import screen
from backlot.cli import CommandError, main, parse_ttl
from infra.data_folder import secret_path
from infra.http.auth import make_authenticator
from infra.http.keys import read_or_make_secret
from infra.settings import Settings, load_settings
from tests.command_line import every_command
from tests.real_inputs import RealInput, each

SECRET = "signs the tokens of these tests only"
PROJECT = Path(__file__).parents[2]
NO_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(folder))
    return folder


class Run:
    """One run of the command line, as a shell sees it."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["backlot", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err


@pytest.fixture
def backlot(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    return Run(capsys, monkeypatch)


GROUPS = ["analytics", "events", "likes", "projections", "projections parked", "tasks", "topics"]


@pytest.mark.parametrize("path", sorted(words for words, _ in every_command()))
@pytest.mark.parametrize("asked", ["-h", "--help"])
def test_help_is_at_every_level(backlot: Run, path: str, asked: str) -> None:
    code, out, err = backlot(*path.split(), asked)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: backlot {path}".strip())
    assert "-h, --help" in out


@pytest.mark.parametrize("path", GROUPS)
def test_a_group_without_a_command_explains_itself(backlot: Run, path: str) -> None:
    assert backlot(*path.split()) == backlot(*path.split(), "--help")


@pytest.mark.parametrize("asked", ["--version", "-V"])
def test_the_version_is_that_of_the_package(backlot: Run, asked: str) -> None:
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert backlot(asked) == (0, f"backlot {declared}\n", "")


@each("names")
def test_a_name_that_nothing_has_is_answered_with_near_ones(backlot: Run, real: RealInput) -> None:
    code, out, err = backlot(*real.text.split())
    assert (code, out) == (2, ""), real.why
    assert real.right in err
    assert err.count("\n") == 1


def told(backlot: Run, *option_and_text: str) -> int:
    """The exit code of `backlot events` with a time, which has to fit what it says."""
    code, out, err = backlot("events", *option_and_text)
    assert out == ""
    assert ("is not a time such as" in err, "nothing runs in" in err) == (code == 2, code == 4)
    return code


@each("times")
def test_a_time_at_the_command_line(backlot: Run, real: RealInput) -> None:
    assert told(backlot, "list", "--from", real.text) == (2 if real.right == "refused" else 4)


@pytest.mark.parametrize(
    "option", [["list", "--to"], ["state", NO_ID, "--at-time"], ["stream", NO_ID, "--at-time"]]
)
def test_a_time_is_read_the_same_wherever_one_is_taken(backlot: Run, option: list[str]) -> None:
    assert told(backlot, *option, "2 days ago") == 4
    assert told(backlot, *option, "soon") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("projections", "rollback", "likes"),
        ("projections", "drop-old", "likes"),
        ("projections", "parked", "park", "likes", "--reason", "x"),
        ("projections", "parked", "discard", "likes", "7", "--reason", "x"),
    ],
)
def test_a_question_that_nobody_can_answer_is_not_asked(
    backlot: Run, words: tuple[str, ...]
) -> None:
    code, out, err = backlot(*words)
    assert (code, out) == (2, "")
    assert "say --yes" in err
    assert err.count("\n") == 1
    code, _, err = backlot(*words, "--yes")
    assert (code, "nothing runs" in err) == (4, True)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("y\n", 4, "nothing runs"),
        ("n\n", 3, "nothing was changed"),
        ("\n", 3, "nothing was"),
        ("", 130, ""),
    ],
)
def test_a_question_on_a_terminal_is_answered(
    backlot: Run, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, said: str
) -> None:
    monkeypatch.setattr(screen, "_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdin", StringIO(answer))
    ended, out, err = backlot("projections", "drop-old", "likes")
    assert (ended, out.strip()) == (code, "")
    assert err.startswith("Remove the previous copy of likes? [y/N]:")
    assert said in err


def test_what_breaks_is_not_taken_for_a_finding(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Settings:
        raise ZeroDivisionError

    monkeypatch.setattr("backlot.likes.load_settings", broken)
    code, out, err = backlot("likes", "reconcile")
    assert (code, out) == (4, "")
    assert "ZeroDivisionError" in err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("backlot ev", {"events"}),
        ("backlot projections re", {"replay", "resume"}),
        ("backlot projections replay li", {"likes"}),
        ("backlot projections parked list c", {"catalog", "comments", "counters"}),
        ("backlot projections replay likes --wor", {"--workers"}),
        ("backlot events list --aggregate v", {"video_likes"}),
        ("backlot events tail --type comment.p", {"comment.posted", "comment.posted.v1"}),
        ("backlot events export --format ", {"jsonl", "cloudevents", "parquet"}),
        ("backlot topics dead ", {"discard", "list", "show"}),
        ("backlot topics dead list --topic comment.c", {"comment.created"}),
        ("backlot tasks dead --queue t", {"translation", "translation_requests"}),
    ],
)
def test_a_shell_completes(
    backlot: Run, monkeypatch: pytest.MonkeyPatch, words: str, offered: set[str]
) -> None:
    monkeypatch.setenv("_BACKLOT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code, out, err = backlot()
    assert (code, set(out.split()), err) == (0, offered, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how(backlot: Run, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    # What it offers depends on the shell that it finds when the commands are read.
    monkeypatch.setattr(typer.main, "get_command", get_command)
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, err = backlot("--show-completion", shell)
    assert (code, err) == (0, "")
    assert "_BACKLOT_COMPLETE" in out


def test_without_a_command_it_explains_itself(backlot: Run) -> None:
    code, out, err = backlot()
    assert (code, err) == (0, "")
    for command in ("up", "demo", "upload", "token", "doctor", "bench"):
        assert f"  {command} " in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("frobnicate",), "No such command"),
        (("token",), "Missing option '--user'"),
        (("token", "--user", "a", "--ttl", "soon"), "'soon' is not a duration"),
        (("token", "--user", "a"), "no secret in"),
        (("demo", "--viewers", "0"), "--viewers"),
    ],
)
def test_a_failure_is_one_line_on_stderr(
    backlot: Run, arguments: tuple[str, ...], why: str
) -> None:
    code, out, err = backlot(*arguments)
    assert code != 0
    assert out == ""
    assert err.startswith("backlot: ")
    assert why in err
    assert err.count("\n") == 1


def test_a_wrong_setting_stops_a_start_in_one_line(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKLOT_PORT", "eighty")
    code, out, err = backlot("up")
    assert (code, out) == (2, "")
    assert err.startswith("backlot: BACKLOT_PORT: ")


def test_a_token_is_accepted_by_the_server_of_that_folder(backlot: Run, folder: Path) -> None:
    folder.mkdir()
    secret = read_or_make_secret(secret_path(folder))
    code, out, _ = backlot("token", "--user", "alice", "--admin", "--ttl", "5m")
    assert code == 0
    identity = make_authenticator(load_settings({}).auth, secret).authenticate(out.strip())
    assert (identity.person, identity.is_admin) == ("alice", True)


def test_a_token_has_the_roles_that_are_named(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    roles = ("--role", "moderator", "--role", "service", "--admin", "--auditor", "--role", "admin")
    _, out, _ = backlot("token", "--user", "olga", *roles, "--json")
    printed = json.loads(out)
    assert printed["roles"] == ["admin", "auditor", "moderator", "service"]
    claims = jwt.decode(printed["token"], SECRET, algorithms=["HS256"])
    assert claims["roles"] == printed["roles"]
    assert claims["jti"] == printed["jti"]
    assert claims["exp"] - claims["iat"] == 3600
    code, _, err = backlot("token", "--user", "olga", "--role", "emperor")
    assert code == 2
    assert "emperor" in err


def test_a_token_lives_as_long_as_the_server_takes_it(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("JWT_MAX_LIFETIME_SECONDS", "3600")
    assert backlot("token", "--user", "bob", "--ttl", "1h")[0] == 0
    code, _, err = backlot("token", "--user", "bob", "--ttl", "61m")
    assert code == 2
    assert "--ttl: at most 3600 seconds, which JWT_MAX_LIFETIME_SECONDS allows" in err


@pytest.mark.parametrize("name", ["operator:root", "system", "translation"])
def test_no_token_is_minted_for_a_part_of_the_system(
    backlot: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    code, _, err = backlot("token", "--user", name)
    assert code == 2
    assert "give this user another id" in err


def test_a_token_carries_the_configured_issuer_and_audience(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "JWT_SECRET": SECRET,
        "JWT_ISSUER": "here",
        "JWT_AUDIENCE": "backlot",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    _, out, _ = backlot("token", "--user", "bob", "--json")
    printed = json.loads(out)
    assert printed["userId"] == "bob"
    subject = make_authenticator(load_settings(settings).auth)
    assert subject.authenticate(printed["token"]).person == "bob"


def test_tokens_of_an_identity_provider_are_not_minted_here(
    backlot: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_JWKS_URL", "https://id.example/jwks.json")
    monkeypatch.setenv("JWT_AUDIENCE", "backlot")
    code, _, err = backlot("token", "--user", "bob")
    assert code == 4
    assert "identity provider" in err


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("1h", timedelta(hours=1)),
        (" 7d ", timedelta(days=7)),
    ],
)
def test_durations(text: str, lifetime: timedelta) -> None:
    assert parse_ttl(text) == lifetime


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "-1h", "1.5h", "1w", "999999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(CommandError, match="--ttl"):
        parse_ttl(text)


def test_the_doctor_of_a_fresh_machine_finds_nothing_to_mend(
    backlot: Run, free_port: int, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("BACKLOT_PORT", str(free_port))
    code, out, _ = backlot("doctor", "--json")
    parts = {part.pop("name"): part for part in json.loads(out)["parts"]}
    assert code == 0
    database = ["settings", "database", "projections", "analytics"]
    others = [
        "objects",
        "redis",
        "locks",
        "kafka",
        "tasks",
        "llm",
        "embeddings",
        "erasure",
        "webhooks",
        "seals",
        "keys",
        "auth",
        "api",
    ]
    assert list(parts) == [*database, *others]
    assert {part["kind"] for part in parts.values()} == {"embedded"}
    assert "`make up` starts it" in parts["database"]["detail"]
    assert not folder.exists()


def test_the_doctor_names_a_wrong_setting(backlot: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "loud")
    code, out, _ = backlot("doctor")
    assert code == 1
    assert out.startswith("FAIL  settings")
    assert "LOG_LEVEL" in out


def test_the_doctor_shows_no_password(backlot: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://backlot:hunter2@127.0.0.1:1/backlot")
    code, out, _ = backlot("doctor", "--json")
    database = json.loads(out)["parts"][1]
    assert code == 1
    assert database["url"] == "postgresql://backlot:***@127.0.0.1:1/backlot"
    assert not database["ok"]
    assert "hunter2" not in out


def test_the_doctor_sees_a_secret_that_others_can_read(backlot: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / "backlot-format").write_text("1\n")
    secret = secret_path(folder)
    read_or_make_secret(secret)
    secret.chmod(0o644)
    code, out, _ = backlot("doctor")
    assert code == 1
    assert f"chmod 600 {secret}" in out


def test_the_doctor_sees_a_folder_of_another_version(backlot: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / "backlot-format").write_text("7\n")
    code, out, _ = backlot("doctor")
    assert code == 1
    assert "format '7'" in out
