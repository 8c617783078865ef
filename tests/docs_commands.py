"""The `backlot` commands that the documentation and the program's own messages name."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.structure import nodes_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PACKAGES = ("backlot", "commands", "infra", "projections", "readapi", "workers")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A user and a database of that name are no commands: they follow an option.
CALL = re.compile(r"(?<![\w./-])(?<!-U )(?<!-Fc )(?:\.venv/bin/)?backlot +([^|;&)`\n]+)")
SPAN = re.compile(r"`(?:\.venv/bin/)?backlot ([^`\n]+)`")
# The beginning of such a span in source, be it cut into several strings: to parse is slow.
NAMING = re.compile(r"`[^\w`]*f?[^\w`]*(?:\.venv/bin/)?backlot\b")
# The reference: compared with the program elsewhere.
REFERENCE = re.compile(r"^\| `backlot .*$", re.MULTILINE)
UUID = "5f0c2f0a-0000-4000-8000-000000000001"
CORRELATION = "0f4e…"


class Named(NamedTuple):
    """A command, its words without the first, and where it is named."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: backlot {' '.join(self.words)}"


def shell_blocks(page: Path) -> list[str]:
    """What a page tells to type into a shell, block by block."""
    return SHELL.findall(page.read_text())


def in_pages(pages: Iterable[Path]) -> Iterator[Named]:
    """Each command of each page, in order: in shell blocks, and within sentences."""
    for page in pages:
        text = REFERENCE.sub("", page.read_text())
        for block in SHELL.findall(text):
            yield from _calls(page.name, re.sub(r"(?m)(?:^| +)# .*$", "", block))
        yield from _spans(page.name, FENCE.sub("", text))


def in_messages() -> Iterator[Named]:
    """Each command that a text of the program names, docstrings included."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in nodes_of(path) if NAMING.search(path.read_text()) else ():
                if isinstance(node, ast.Constant | ast.JoinedStr):
                    yield from _spans(str(path.relative_to(ROOT)), _text(node))


def _calls(where: str, text: str) -> Iterator[Named]:
    for found in CALL.findall(text):
        yield from _named(where, found)


def _spans(where: str, text: str) -> Iterator[Named]:
    for found in SPAN.findall(text):
        if "|" not in found:
            yield from _named(where, found)


def _named(where: str, text: str) -> Iterator[Named]:
    words = shlex.split(re.sub(r"[\[\]]| >.*", "", text))
    if words != ["…"]:
        yield Named(where, tuple(map(_filled_in, words)))


def _filled_in(word: str) -> str:
    """A word with what stands for something filled in."""
    if word == "CORRELATION_ID":
        return CORRELATION
    if re.fullmatch(r"\$ID|\$?[A-Z]+_ID|[0-9a-f]{8}-…", word):
        return UUID
    return word


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = (each.value if isinstance(each, ast.Constant) else "likes" for each in node.values)
    return "".join(str(part) for part in parts)
