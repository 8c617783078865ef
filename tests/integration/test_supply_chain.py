"""What Backlot is made of is listed whole, and an audit that saw nothing is no clean one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.composition import PROJECT
from tools.audit import CLEAN, FAULTY, UNKNOWN, audit, judge

FINE = {"name": "one", "version": "1.0", "vulns": []}
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["1.1"]}
SKIPPED = {"name": "two", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "told"),
    [
        ([FINE], CLEAN, "no known faults in 1 packages"),
        ([FINE, SKIPPED], UNKNOWN, "1 of 2 packages could not be looked up"),
        ([SKIPPED], UNKNOWN, "nothing is sure"),
        ([{**FINE, "vulns": [FAULT]}], FAULTY, "one 1.0: PYSEC-1, CVE-2026-1; fixed in 1.1"),
        ([{**FINE, "vulns": [FAULT]}, SKIPPED], FAULTY, "1 of 2 packages could not be looked up"),
    ],
)
def test_an_audit_says_what_it_saw(packages: list[dict[str, Any]], code: int, told: str) -> None:
    verdict = judge({"dependencies": packages})
    assert verdict.code == code
    assert told in verdict.text


def test_an_audit_without_an_advisory_base_is_no_clean_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    listed = tmp_path / "requirements.txt"
    listed.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    verdict = audit(str(listed))
    assert verdict.code == UNKNOWN
    assert "nothing is sure" in verdict.text


def faults(bill: object) -> list[str]:
    """What the schema of CycloneDX 1.6 finds wrong."""
    folder = files("cyclonedx.schema") / "_res"

    def schema(name: str) -> Any:
        return json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text())

    others = [
        (f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json", schema(name))
        for name in ("spdx", "jsf-0.82")
    ]
    registry = jsonschema_rs.Registry(others)
    validator = jsonschema_rs.validator_for(schema("bom-1.6"), registry=registry)
    return [fault.message for fault in validator.iter_errors(bill)]


def test_the_bill_of_materials_lists_every_package_with_its_hashes(tmp_path: Path) -> None:
    """The command of `make sbom`, twice: the same list gives the same file.

    Its own validation, by the same schema, takes four seconds.
    """
    makefile = (PROJECT / "Makefile").read_text()
    (recipe,) = re.findall(r"^sbom:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    (command,) = re.findall(r"/cyclonedx-py (.*) -o build/", recipe.replace("\\\n", ""))
    program, made = (sys.executable, "-m", "cyclonedx_py"), []
    for name in ("one.json", "two.json"):
        ran = subprocess.run(
            [*program, *command.split(), "--no-validate", "-o", str(tmp_path / name)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        made.append((tmp_path / name).read_text())
    assert made[0] == made[1]
    bill = json.loads(made[0])
    assert faults(bill) == []
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "backlot")
    locked = re.findall(
        r"^([\w.-]+)==([^\s;\\]+)", (PROJECT / "requirements.txt").read_text(), re.MULTILINE
    )
    listed = {(part["name"], part["version"]): part for part in bill["components"]}
    assert listed.keys() == set(locked)
    for part in listed.values():
        assert any("hashes" in found for found in part["externalReferences"]), part["name"]
