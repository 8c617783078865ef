"""The guide to a new feature, followed block by block in a copy of the source."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.e2e.guide import Block, blocks
from tests.e2e.program import Program
from tests.e2e.releases import copy_of_source
from tests.e2e.videos import read, upload
from tests.support import PROJECT, eventually

GUIDE = PROJECT / "docs" / "adding-a-feature.md"
# What compares the code with its declarations, its documents and its stored events.
JUDGES = ("bookmarks", "features", "docs", "codec", "architecture", "routes")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with the feature of the guide."""
    folder = copy_of_source(tmp_path_factory.mktemp("extended") / "source")
    for block in blocks(GUIDE.read_text()):
        block.apply(folder)
    return folder


def succeeds(folder: Path, module: str, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def python_files(found: Iterable[Block]) -> list[str]:
    return [block.path for block in found if block.path.endswith(".py")]


def test_every_block_of_the_guide_is_headed_by_its_file() -> None:
    page = GUIDE.read_text()
    assert len(list(blocks(page))) == page.count("\n```") // 2


def test_the_code_of_the_guide_is_in_order(extended: Path) -> None:
    files = python_files(blocks(GUIDE.read_text()))
    succeeds(extended, "ruff", "check", "--no-cache", *files)
    succeeds(extended, "ruff", "format", "--no-cache", "--check", *files)


def test_the_tests_pass_with_the_feature(extended: Path) -> None:
    files = [f"tests/unit/test_{name}.py" for name in JUDGES]
    succeeds(extended, "pytest", "-q", "-n0", "-p", "no:cacheprovider", *files)


def test_a_video_is_kept(extended: Path, make_program: Callable[..., Program]) -> None:
    program = make_program(PYTHONPATH=str(extended)).start()
    alice, bob = program.client("alice"), program.client("bob")
    path = f"/videos/{upload(alice)}/bookmark"
    kept = [viewer.put(path) for viewer in (alice, bob, bob)]
    assert [read(each)["isKept"] for each in kept] == [True, True, True]
    fresh = {"Backlot-Min-Position": kept[-1].headers["Backlot-Position"]}
    assert read(program.client().get(path, headers=fresh))["bookmarksCount"] == 2
    assert program.client().put(path).status_code == 401
    eventually(lambda: "bookmarks" in program.run("projections", "list").stdout)
    assert program.stop() == 0
