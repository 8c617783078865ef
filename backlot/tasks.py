"""`backlot tasks`: the queues of background work, and the tasks that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backlot import names
from backlot.group import group
from backlot.layout import table
from backlot.output import Json, show
from infra.errors import UsageError
from infra.settings import load_settings

if TYPE_CHECKING:
    from infra.tasks.letters import TaskQueues

app = group("Background tasks: queues and dead letters.")

Queue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        help="Only this queue; default: all.",
        autocompletion=names.completion(names.queues),
    ),
]


@app.command(name="list")
def list_queues(as_json: Json = False) -> None:
    """The queues: how many tasks wait, run, wait for their next attempt, are dead."""
    found = _queues().depths()
    rows = [
        (e.queue, e.waiting, "-" if e.taken is None else e.taken, e.delayed, e.dead) for e in found
    ]
    lines = table(("queue", "waiting", "taken", "delayed", "dead"), rows)
    items = [{"queue": depth.queue, **depth.by_state()} for depth in found]
    show("\n".join(lines), {"items": items}, as_json)


@app.command()
def dead(
    queue: Queue = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of a queue.")] = 100,
    as_json: Json = False,
) -> None:
    """The tasks that were given up: what they were, how often they were tried, and why."""
    wanted, queues = _names(queue), _queues()
    found = [task for name in wanted for task in queues.dead(name, limit)]
    lines = []
    for task in found:
        when = task.failed_at.isoformat(timespec="seconds") if task.failed_at else "-"
        what = f"{task.actor}({', '.join(repr(arg) for arg in task.args)})"
        lines.append(f"{task.id}  {when}  {task.queue}  {what}  {task.attempts} attempts")
        lines.append(f"    {task.error}")
    text = "\n".join(lines) or "no task is dead"
    show(text, {"items": [task.as_dict() for task in found]}, as_json)


@app.command()
def redrive(
    task: Annotated[
        str | None, typer.Argument(help="The id of a dead task.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are dead.")] = False,
    queue: Queue = None,
    as_json: Json = False,
) -> None:
    """Send dead tasks once more, with all their attempts before them."""
    from infra.tasks.errors import NoSuchDeadTask

    if (task is None) == (not every):
        raise UsageError("name one dead task, or say --all")
    wanted, queues = _names(queue), _queues()
    sent = [each for name in wanted for each in queues.redrive(name, task)]
    if task is not None and not sent:
        raise NoSuchDeadTask(f"no dead task {task}: `backlot tasks dead` lists them")
    show(
        "\n".join(f"sent again: {each}" for each in sent) or "no task is dead",
        {"sent": sent},
        as_json,
    )


def _queues() -> TaskQueues:
    from infra.tasks.broker import shared_queues

    return shared_queues(load_settings())


def _names(queue: str | None) -> tuple[str, ...]:
    from infra.tasks.queues import QUEUES

    return QUEUES if queue is None else (names.require("queue", queue, QUEUES),)
