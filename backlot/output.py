"""What commands print: text for people, JSON for programs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(text: str, data: object, as_json: bool) -> None:
    """Print a result to standard output, as text or as JSON."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2) if as_json else text)


def given(**parameters: object) -> dict[str, object]:
    """Those that were given: what is not said is not recorded."""
    return {name: value for name, value in parameters.items() if value not in (None, False)}
