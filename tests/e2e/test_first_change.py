"""The guide to a first change, followed block by block in a copy of the source.

Its `make` and `git` are the real ones. What it only mentions, such as `make check`, CI runs anyway.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_commands import shell_blocks
from tests.e2e.guide import blocks
from tests.e2e.releases import copy_of_source
from tests.support import DEADLINE_SECONDS, PROJECT, requires

GUIDE = PROJECT / "docs" / "guides" / "contributor.md"
OURS = re.compile("MAKE|MFLAGS|GIT_")
WHO = {
    f"GIT_{role}_{what}": text
    for role in ("AUTHOR", "COMMITTER")
    for what, text in (("NAME", "Ann"), ("EMAIL", "ann@example.com"))
}


class Clone:
    """A clone of the source, with the environment that `make test` has made."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_of_source(folder)
        shutil.copy(PROJECT / ".gitignore", folder)
        stamps = folder / ".venv" / ".stamps"
        stamps.mkdir(parents=True)
        (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
        for stamp in ("python", "run", "dev"):
            (stamps / stamp).touch()
        assert self.types("git init -q . && git add -A && git commit -qm Begin")[0] == 0

    def types(self, command: str) -> tuple[int, str]:
        """Type it into a shell; return how it ended, and what it printed."""
        # `make`, or a hook of Git, that runs these tests hands on its arguments, or its repository.
        inherited = {name: os.environ[name] for name in os.environ if not OURS.match(name)}
        # What is installed is the source, not this copy of it.
        own = {"PYTHONPATH": str(self.folder), "GIT_CONFIG_GLOBAL": os.devnull}
        ran = subprocess.run(
            ["sh", "-euc", command],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env={**inherited, **own, **WHO},
            timeout=4 * DEADLINE_SECONDS,
        )
        return ran.returncode, ran.stdout


@pytest.fixture
def a_clone(tmp_path: Path) -> Clone:
    for program in ("git", "make"):
        requires(program)
    return Clone(tmp_path / "clone")


def test_a_first_change_is_seen_to_fail_and_ends_in_a_commit(a_clone: Clone) -> None:
    typed = iter(shell_blocks(GUIDE))
    test, *changes = blocks(GUIDE.read_text())

    def succeeds() -> str:
        code, told = a_clone.types(next(typed))
        assert code == 0, told
        return told

    assert " passed" in succeeds()
    found = succeeds().splitlines()
    assert {line.partition(":")[0] for line in found} == {
        "commands/moderation.py",
        "domain/moderation.py",
    }
    test.apply(a_clone.folder)
    code, told = a_clone.types(next(typed))
    assert code != 0
    assert "domain.errors.Invalid" in told, told
    assert "1 failed" in told, told
    for change in changes:
        change.apply(a_clone.folder)
    assert "'maxLength': 2000" in succeeds()
    _, _, committed = succeeds().partition("Take longer details of reports\n\n")
    assert set(committed.splitlines()) == {block.path for block in (test, *changes)}
    assert next(typed, None) is None
