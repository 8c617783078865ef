"""The Dockerfile against the project: its Python, what it copies, and whom it runs as."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec

import pytest
from packaging.specifiers import SpecifierSet

from tests.composition import PROJECT, SECRETS, read_composition

LINES = (PROJECT / "Dockerfile").read_text().splitlines(keepends=True)
# Without comments, each instruction on one line.
DOCKERFILE = "".join(line for line in LINES if not line.startswith("#")).replace("\\\n", " ")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def stage(name: str) -> str:
    """The instructions of one stage."""
    found = DOCKERFILE.partition(f" AS {name}\n")[2].partition("\nFROM ")[0]
    assert found, f"there is no stage {name}"
    return found


def copied() -> list[str]:
    """What comes from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [word for line in lines for word in line.split()]


def test_base_images_are_one_python_that_the_project_supports() -> None:
    bases = re.findall(r"^FROM (\S+:\S+) AS", DOCKERFILE, re.MULTILINE)
    (base,) = set(bases)
    version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-\w+", base)
    assert version
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(version[1])


def test_it_copies_what_is_there_and_every_package() -> None:
    assert all((PROJECT / path).exists() for path in copied())
    assert set(PACKAGES) < set(copied())


def test_nothing_else_reaches_the_builder() -> None:
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied())


def test_packages_come_hashed_and_as_wheels() -> None:
    (command,) = re.findall(r"pip install .*-r requirements\.txt", DOCKERFILE)
    assert "--require-hashes" in command
    assert "--only-binary=:all:" in command


@pytest.mark.parametrize("name", ["runtime", "whisper"])
def test_an_image_runs_as_nobody_in_particular(name: str) -> None:
    instructions = stage(name)
    assert instructions.strip().splitlines()[-1] == "USER 10001:10001"
    assert "gcc" not in instructions
    assert "build-essential" not in instructions


def test_only_whisper_s_image_has_ffmpeg() -> None:
    assert "ffmpeg" in stage("whisper")
    assert "ffmpeg" not in stage("runtime") + stage("base")


def test_the_last_stage_is_the_one_of_most_roles() -> None:
    last = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)[-1]
    roles = read_composition().roles
    assert last == "runtime"
    assert {service.given["build"]["target"] for service in roles.values()} == {last}
    chosen = read_composition({**SECRETS, "TASKS_TARGET": "whisper"}).services["tasks"]
    assert stage(chosen.given["build"]["target"])


def test_its_entrypoint_is_the_console_script() -> None:
    assert 'ENTRYPOINT ["backlot"]' in stage("base")
    assert PYPROJECT["project"]["scripts"]["backlot"] == "backlot.cli:main"
    assert find_spec("dramatiq.__main__") is not None
