"""Other releases of the program: copies of its source, to be changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.support import PROJECT

PACKAGES = ("backlot", "commands", "domain", "engine", "infra", "projections", "readapi", "workers")
CHANGED = PROJECT / "projections" / "likes.py"

# The likes of the next release: another version, one more table, one more topic. The class that
# was there is what made the copy of this release.
NEXT_LIKES = '''
from domain.comment import Comment

Former = Likes


class Likes(Former):
    """The likes, and who talks about the video."""

    version = Former.version + 1
    events = (*Former.events, Comment.Posted)
    tables = TABLES + ";CREATE TABLE {{schema}}.talks (position bigint PRIMARY KEY)"
    former = {former}

    def apply(self, batch, cursor):
        talks = [recorded for recorded in batch if isinstance(recorded.event, Comment.Posted)]
        likes = [recorded for recorded in batch if recorded not in talks]
        if talks:
            query = self.sql("INSERT INTO {{schema}}.talks SELECT unnest(%b::bigint[])")
            cursor.execute(query, columns([(position,) for position, _ in talks]))
        if likes:
            super().apply(likes, cursor)
'''


def next_release(folder: Path, *, carries: bool) -> Path:
    """Where its source is; `carries`: it can still feed the copy that this release has made."""
    for package in PACKAGES:
        # With what was compiled: Python compiles again what has changed.
        shutil.copytree(PROJECT / package, folder / package)
    changed = folder / CHANGED.relative_to(PROJECT)
    changed.write_text(
        changed.read_text() + NEXT_LIKES.format(former="(Former,)" if carries else "()")
    )
    return folder


def copy_of_source(folder: Path) -> Path:
    """Copy the whole source, without what tools and programs leave beside it."""

    def left_out(of: str, names: Iterable[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") and name != ".env.example"}
        hidden |= {"node_modules", "generated"}
        # What was compiled of the program stays: Python compiles again what has changed.
        of_tests = (PROJECT / "tests") in (Path(of), *Path(of).parents)
        return hidden | {"__pycache__"} if of_tests else hidden

    shutil.copytree(PROJECT, folder, ignore=left_out)
    return folder
