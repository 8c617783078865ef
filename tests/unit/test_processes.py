"""What keeps the processes beside the first one, where they can't be started."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import NoReturn

import pytest

from backlot.processes import Assignment, ServingProcesses, socket_folder
from infra.settings import Role, load_settings
from tests.support import eventually


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine that takes no more processes."""
    tried: list[int] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        tried.append(len(tried))
        raise BlockingIOError("no more processes")

    monkeypatch.setattr("subprocess.Popen", refuse)
    return tried


def test_what_can_not_be_started_now_is_tried_again(attempts: list[int]) -> None:
    with ServingProcesses(1) as serving:
        eventually(lambda: len(attempts) > 2)
        assert not serving.ready


def test_without_others_all_are_ready() -> None:
    with ServingProcesses(0) as serving:
        assert serving.ready


def test_the_others_serve_with_the_settings_of_the_first(tmp_path: Path) -> None:
    settings = load_settings({"BACKLOT_PROCESSES": "3", "RATE_LIMIT_WRITE": "1/2"})
    told = Assignment.of(settings, "postgresql://here", tmp_path)
    assert told.settings.server.roles == {Role.COMMANDS, Role.QUERIES, Role.WEB}
    # They are not alone with what they share.
    assert told.settings.server.processes == 3
    assert told.settings.rate_limits == settings.rate_limits
    assert told.shared.redis == tmp_path / "redis.sock"
    broker = told.settings.tasks.broker_url
    assert broker is not None
    assert broker.get_secret_value() == f"unix://{tmp_path}/redis.sock"


def test_with_servers_of_their_own_they_use_these(tmp_path: Path) -> None:
    settings = load_settings({"BACKLOT_PROCESSES": "2", "REDIS_URL": "redis://one"})
    told = Assignment.of(settings, "postgresql://here", tmp_path)
    assert told.shared.redis is None
    assert told.settings.tasks == settings.tasks


@pytest.mark.parametrize("length", [10, 200])
def test_sockets_lie_where_only_their_user_may_enter(tmp_path: Path, length: int) -> None:
    data = tmp_path / ("d" * length)
    data.mkdir()
    names = count()
    for _ in range(2):
        with socket_folder(data) as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert list(folder.iterdir()) == []
            (folder / f"{next(names)}.sock").touch()
        assert not folder.exists()


def test_what_a_killed_process_left_is_removed(short_dir: Path) -> None:
    left = short_dir / "left" / "processes" / "1.sock"
    left.parent.mkdir(parents=True)
    left.touch()
    with socket_folder(short_dir / "left") as folder:
        assert folder == left.parent
        assert not left.exists()
