"""An upload client with all that it talks to."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from backlot.cli import main
from backlot.upload import run
from tests.unit.fake_uploads import CONTENT, SECRET, URL, FakeUploads
from tests.unit.upload_runs import Ran, Upload


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "backlot" / "uploads"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, state: Path) -> FakeUploads:
    fake = FakeUploads()
    quick = replace(run.PATIENCE, attempts=6, first=0.001, longest=0.002)
    monkeypatch.setattr(run, "PATIENCE", quick)
    monkeypatch.setattr(run, "_client", lambda url: httpx.AsyncClient(base_url=url, transport=fake))
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.delenv("BACKLOT_TOKEN", raising=False)
    return fake


@pytest.fixture
def upload(
    server: FakeUploads,
    film: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Upload:
    def go(*options: str, path: Path = film, url: str = URL) -> Ran:
        words = ["backlot", "upload", str(path), "--url", url, "--json", *options]
        if not {"--user", "--token"} & set(options):
            words += ["--user", "alice"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ran(int(str(ended.value.code)), printed.out, printed.err)

    return go


@pytest.fixture
def interrupted(server: FakeUploads, upload: Upload) -> FakeUploads:
    """A server that holds parts of an upload whose client then lost its connection for good."""
    server.faults["PUT 7"].extend(httpx.ConnectError("away") for _ in range(6))
    ran = upload("--parallel", "1")
    assert "broken off: PUT part 7: ConnectError away; run the same" in ran.complaint
    assert sorted(server.only.parts) == [1, 2, 3, 4, 5, 6]
    server.calls.clear()
    server.asked.clear()
    return server
