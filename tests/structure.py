"""Figures of the product's structure: `python -m tests.structure` prints them for this checkout."""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parents[1]
# What these import is named there because it is a part of its own: a feature's, or a command.
DECLARING = ("backlot.features", "backlot.cli")
PACKAGES = (
    "backlot", "commands", "domain", "engine", "infra", "projections", "readapi", "web", "workers",
)  # fmt: skip


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file, which is parsed once."""
    return ast.parse(path.read_text())


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return each node of a file's syntax tree; walking the tree takes longer than parsing it."""
    return tuple(ast.walk(parsed(path)))


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its dotted name, its path and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def nodes(self) -> tuple[ast.AST, ...]:
        return nodes_of(self.path)

    def names(self) -> Iterator[str]:
        """Every dotted name that the module imports, `a.b.c` for `from a.b import c`."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(root: Path = ROOT) -> dict[str, Module]:
    """The product's modules by their dotted names; a package has the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            lines = len(path.read_text().splitlines())
            found[name] = Module(name, path, parsed(path), lines)
    return found


def imports(found: Mapping[str, Module]) -> dict[str, set[str]]:
    """For each module the product's modules that it imports; importing a name is importing its
    module."""
    return {
        module.name: {known for name in module.names() if (known := _known(name, found))}
        - {module.name}
        for module in found.values()
    }


def _known(name: str, found: Mapping[str, Module]) -> str | None:
    if name in found:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in found else None


def with_one_importer(found: Mapping[str, Module]) -> dict[str, str]:
    """Modules, packages left out, that one other module of the product imports, with that one."""
    importers: dict[str, set[str]] = defaultdict(set)
    for name, imported in imports(found).items():
        for each in imported:
            importers[each].add(name)
    return {
        name: importer
        for name, module in sorted(found.items())
        if module.path.name != "__init__.py" and len(importers[name]) == 1
        for importer in importers[name]
    }


def classes_that_occur_twice(found: Mapping[str, Module]) -> list[str]:
    """Names of classes at the top of more than one module."""
    names = Counter(
        node.name
        for module in found.values()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
    )
    return sorted(name for name, count in names.items() if count > 1)


def function_lengths(found: Mapping[str, Module]) -> list[int]:
    """Lines of each function and method, its signature and docstring included."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for module in found.values()
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def figures(root: Path = ROOT) -> dict[str, float]:
    """What the structure comes to, by what is counted."""
    found = modules(root)
    files = [module.lines for module in found.values() if module.lines]
    functions = function_lengths(found)
    imported = imports(found)
    alone = with_one_importer(found)
    return {
        "files": len(files),
        "lines": sum(files),
        "file length, median": median(files),
        "file length, p90": quantiles(files, n=10)[-1],
        "file length, longest": max(files),
        "function length, median": median(functions),
        "function length, p90": quantiles(functions, n=10)[-1],
        "function length, longest": max(functions),
        "imports per file, mean": sum(map(len, imported.values())) / len(files),
        "modules with one importer": len(alone),
        "- declared as a part": sum(each in DECLARING for each in alone.values()),
        "class names that occur twice": len(classes_that_occur_twice(found)),
    }


if __name__ == "__main__":
    for what, figure in figures(Path(sys.argv[1]) if sys.argv[1:] else ROOT).items():
        sys.stdout.write(f"{what:<32}{figure:>10.6g}\n")
