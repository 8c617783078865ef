"""The server that `make demo` starts when none answers, and leaves alone when one does."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from backlot.demo.client import ServerNotStarted, running_server
from infra.data_folder import lock_holder
from infra.settings import Settings, load_settings


@pytest.fixture
def settings(short_dir: Path, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(short_dir)
    return load_settings({"BACKLOT_PORT": str(free_port)})


def test_a_server_of_its_own_lives_for_the_block(settings: Settings) -> None:
    """At another port than the usual one, which is not free."""
    with socket.socket() as stranger, ExitStack() as stack:
        stranger.bind(("127.0.0.1", settings.server.port))
        own = stack.enter_context(running_server(settings))
        assert own.server.port != settings.server.port
        assert httpx.get(f"{own.server.local_url}/readyz").status_code == 200
        assert lock_holder(own.server.data_dir) is not None
        with running_server(own) as same:
            assert same == own
    assert not own.server.data_dir.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{own.server.local_url}/readyz")


def test_a_configured_folder_is_used_and_kept(short_dir: Path, free_port: int) -> None:
    folder = short_dir / "kept"
    given = {"BACKLOT_PORT": str(free_port), "BACKLOT_DATA_DIR": str(folder)}
    with running_server(load_settings(given)) as own:
        assert own.server.data_dir == folder
    assert (folder / "backlot-format").exists()


def test_a_server_that_cannot_start_is_told(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "backlot-format").write_text("99\n")
    given = {"BACKLOT_PORT": str(free_port), "BACKLOT_DATA_DIR": str(tmp_path)}
    with (
        pytest.raises(ServerNotStarted, match="ended at its start"),
        running_server(load_settings(given)),
    ):
        pytest.fail("it should not have started")
