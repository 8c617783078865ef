"""`backlot tasks`: the queues of background work, and the tasks that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backlot import arguments
from backlot.arguments import group
from backlot.output import Json, given, show, table
from backlot.screen import Yes, require_yes
from infra.errors import UsageError
from infra.settings import load_settings
from infra.utc import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.tasks.queues import TaskQueues, Wanted

app = group("Background tasks: queues and dead letters.")

MOST = 1_000_000

OneTask = Annotated[str | None, typer.Argument(help="The id of a dead task.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All that are dead.")]
AllLike = Annotated[
    str | None,
    typer.Option("--all-like", metavar="ID", help="All of the actor and the error of that one."),
]
Queue = Annotated[
    str | None,
    typer.Option(
        "--queue",
        help="Only this queue; default: all.",
        autocompletion=arguments.completion(arguments.queues),
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
        when = rfc3339(task.failed_at, "seconds") if task.failed_at else "-"
        what = f"{task.actor}({', '.join(repr(arg) for arg in task.args)})"
        lines.append(f"{task.id}  {when}  {task.queue}  {what}  {task.attempts} attempts")
        lines.append(f"    {task.error}")
    text = "\n".join(lines) or "no task is dead"
    show(text, {"items": [task.as_dict() for task in found]}, as_json)


@app.command()
def redrive(
    task: OneTask = None,
    every: Every = False,
    all_like: AllLike = None,
    queue: Queue = None,
    as_json: Json = False,
) -> None:
    """Send dead tasks once more, with all their attempts before them."""
    _require_choice(task, all_like, every=every)
    named, queues = _names(queue), _queues()
    wanted = _wanted(queues, named, task, all_like)
    sent = [each for name in named for each in queues.redrive(name, wanted)]
    _require_found(task, sent)
    show(
        "\n".join(f"sent again: {each}" for each in sent) or "no task is dead",
        {"sent": sent},
        as_json,
    )


@app.command()
def discard(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is recorded.")],
    task: OneTask = None,
    every: Every = False,
    all_like: AllLike = None,
    queue: Queue = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Give dead tasks up for good; the log keeps who did, when, why, and which they were."""
    from backlot.database import database_url, recorded

    _require_choice(task, all_like, every=every)
    settings = load_settings()
    named, queues = _names(queue), _queues()
    wanted = _wanted(queues, named, task, all_like)
    require_yes("Give these tasks up for good?", yes=yes)
    asked = given(task=task, allLike=all_like, queue=queue, reason=reason)
    with recorded(database_url(settings), "discard-tasks", "dead tasks", asked) as running:
        found = [each for name in named for each in queues.discard(name, wanted)]
        _require_found(task, found)
        gone = [{"id": each.id, "queue": each.queue, "actor": each.actor} for each in found]
        running.result = {"discarded": len(found), "tasks": gone}
    show(f"{len(found)} given up", {"discarded": [each.id for each in found]}, as_json)


def _require_choice(task: str | None, all_like: str | None, *, every: bool) -> None:
    """Raise UsageError unless it is said in one way which dead tasks are meant."""
    if [task is not None, all_like is not None, every].count(True) != 1:
        raise UsageError("name one dead task, or say --all, or --all-like one")


def _wanted(
    queues: TaskQueues, named: Sequence[str], task: str | None, all_like: str | None
) -> Wanted:
    """Which dead tasks are meant; raises NoSuchDeadTask where none is like that one."""
    from infra.tasks import queues as dead_letters
    from infra.tasks.messages import NoSuchDeadTask

    if task is not None:
        return dead_letters.named(task)
    if all_like is None:
        return dead_letters.every
    dead = (each for name in named for each in queues.dead(name, MOST))
    one = next((each for each in dead if each.id == all_like), None)
    if one is None:
        raise NoSuchDeadTask(f"no dead task {all_like}: `backlot tasks dead` lists them")
    return dead_letters.like(one)


def _require_found(task: str | None, found: Sequence[object]) -> None:
    from infra.tasks.messages import NoSuchDeadTask

    if task is not None and not found:
        raise NoSuchDeadTask(f"no dead task {task}: `backlot tasks dead` lists them")


def _queues() -> TaskQueues:
    from infra.tasks.broker import shared_queues

    return shared_queues(load_settings().tasks)


def _names(queue: str | None) -> tuple[str, ...]:
    from infra.tasks.queues import QUEUES

    return QUEUES if queue is None else (arguments.require("queue", queue, QUEUES),)
