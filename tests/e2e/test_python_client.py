"""The Python client, as its wheel has it, against the started program: runs its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from datetime import timedelta
from pathlib import Path

import pytest

from backlot.http import ApiPart, describe
from infra.data_folder import secret_path
from infra.http.auth import mint_token
from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS, PROJECT, unavailable

CLIENT = PROJECT / "clients" / "python"
PYTHON = CLIENT / ".venv" / "bin" / "python"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel has, and nothing else."""
    document = CLIENT.parent / "openapi.json"
    if not PYTHON.exists() or not document.exists():
        unavailable("the client is not generated: `make clients`")
    if json.loads(document.read_text()) != describe(ApiPart.ALL):
        unavailable("the client is that of another version of the API: `make clients`")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([sys.executable, "-m", "pip", *build, "-w", folder, CLIENT], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "package")
    return folder / "package"


def test_the_wheel_has_the_generated_part_and_says_that_it_is_typed(package: Path) -> None:
    (about,) = package.glob("*.dist-info")
    assert {path.name for path in package.iterdir()} == {"backlot_client", about.name}
    assert "Requires-Dist: httpx<1,>=0.28" in (about / "METADATA").read_text()
    files = {path.name for path in (package / "backlot_client").iterdir()}
    assert {"generated", "py.typed", "client.py"} <= files
    assert (package / "backlot_client" / "generated" / "models" / "video.py").exists()


def test_its_own_tests_hold_against_the_program(package: Path, server: Program) -> None:
    secret = secret_path(server.data).read_text().strip()
    tokens = {
        "alice": server.token("alice"),
        "bob": server.token("bob"),
        "service": server.token("svc", roles=["service"]),
        "expired": mint_token(secret, "bob", ttl=timedelta(hours=-1)),
    }
    own = {"BACKLOT_URL": server.url, "BACKLOT_TOKENS": json.dumps(tokens)}
    # Nothing of Backlot itself, and of the client what was built.
    own["PYTHONPATH"] = str(package)
    # Options of this run are not those of the client's.
    foreign = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    command = [str(PYTHON), "-m", "pytest", "-q", "-o", "pythonpath=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=CLIENT,
        env={**foreign, **own},
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
