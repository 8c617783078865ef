"""Known faults of what is installed: `python -m tools.audit requirements.txt`, or `make audit`.

pip-audit ends with 0 where it could look nothing up; this does not. Exit codes: 0, nothing is
known; 1, something is; 3, not every package could be looked up, so that nothing is sure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

CLEAN, FAULTY, UNKNOWN = 0, 1, 3


class Verdict(NamedTuple):
    """An exit code, and what to say."""

    code: int
    text: str


def judge(report: Mapping[str, Any]) -> Verdict:
    """Return what a report of pip-audit, as JSON has it, comes to."""
    packages = report["dependencies"]
    faults = [line for package in packages for line in _faults(package)]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    unsure = f"{len(skipped)} of {len(packages)} packages could not be looked up"
    if faults:
        return Verdict(FAULTY, "\n".join([*faults, *([unsure] if skipped else [])]))
    if skipped:
        return Verdict(UNKNOWN, f"{unsure}: the advisory base was not reached; nothing is sure")
    return Verdict(CLEAN, f"no known faults in {len(packages)} packages")


def _faults(package: Mapping[str, Any]) -> Iterator[str]:
    for fault in package.get("vulns", ()):
        names = ", ".join([fault["id"], *fault.get("aliases", ())])
        fixed = ", ".join(fault.get("fix_versions", ())) or "no release"
        yield f"{package['name']} {package['version']}: {names}; fixed in {fixed}"


def audit(requirements: str) -> Verdict:
    """Ask the advisory base about every package of a hashed list."""
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"),
            *("--require-hashes", "--disable-pip", "-r", requirements),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    try:
        return judge(json.loads(asked.stdout))
    except ValueError:
        reason = (asked.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return Verdict(UNKNOWN, f"the advisory base was not reached; nothing is sure: {reason}")


if __name__ == "__main__":
    verdict = audit(sys.argv[1])
    sys.stdout.write(f"{verdict.text}\n")
    sys.exit(verdict.code)
