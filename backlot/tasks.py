"""`backlot tasks`: the queues of background work, and the tasks that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backlot.arguments import completion, group, require, require_one_way
from backlot.database import database_url, recorded
from backlot.output import Json, given, show, show_table
from backlot.screen import Yes, require_yes
from domain.operation import DEAD_TASKS, DISCARD_TASKS
from infra.http.shapes import rfc3339
from infra.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.tasks.queues import TaskQueues, Wanted

app = group("Background tasks: queues and dead letters.")

MOST = 1_000_000


def queue_names() -> tuple[str, ...]:
    """Return the names of the queues of tasks."""
    from infra.tasks.queues import QUEUES

    return QUEUES


OneTask = Annotated[str | None, typer.Argument(help="The id of a dead task.", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="All that are dead.")]
AllLike = Annotated[
    str | None,
    typer.Option("--all-like", metavar="ID", help="All of the actor and the error of that one."),
]
Queue = Annotated[
    str | None,
    typer.Option(
        "--queue", help="Only this queue; default: all.", autocompletion=completion(queue_names)
    ),
]


@app.command(name="list")
def list_queues(as_json: Json = False) -> None:
    """The queues: how many tasks wait, run, wait for their next attempt, are dead."""
    found = _queues().depths()
    show_table(
        ("queue", "waiting", "taken", "delayed", "dead"),
        [
            (e.queue, e.waiting, "-" if e.taken is None else e.taken, e.delayed, e.dead)
            for e in found
        ],
        {"items": [{"queue": depth.queue, **depth.by_state()} for depth in found]},
        as_json,
    )


@app.command()
def dead(
    queue: Queue = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of a queue.")] = 100,
    as_json: Json = False,
) -> None:
    """The tasks that were given up: what they were, how often they were tried, and why."""
    names, queues = _names(queue), _queues()
    found = [task for name in names for task in queues.dead(name, limit)]
    lines = []
    for task in found:
        when = rfc3339(task.failed_at, "seconds") if task.failed_at else "-"
        what = f"{task.actor}({', '.join(map(repr, task.args))})"
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
    queues, names, wanted = _chosen(task, every, all_like, queue)
    sent = [each for name in names for each in queues.redrive(name, wanted)]
    _require_found(task, sent)
    text = "\n".join(f"sent again: {each}" for each in sent) or "no task is dead"
    show(text, {"sent": sent}, as_json)


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
    queues, names, wanted = _chosen(task, every, all_like, queue)
    require_yes("Give these tasks up for good?", yes=yes)
    url = database_url(load_settings())
    asked = given(task=task, allLike=all_like, queue=queue, reason=reason)
    with recorded(url, DISCARD_TASKS, DEAD_TASKS, asked) as running:
        found = [each for name in names for each in queues.discard(name, wanted)]
        _require_found(task, found)
        gone = [{"id": each.id, "queue": each.queue, "actor": each.actor} for each in found]
        running.result = {"discarded": len(found), "tasks": gone}
    show(f"{len(found)} given up", {"discarded": [each.id for each in found]}, as_json)


def _chosen(
    task: str | None, every: bool, all_like: str | None, queue: str | None
) -> tuple[TaskQueues, Sequence[str], Wanted]:
    """Return the queues, the names of those to look into, and which dead tasks are meant.

    Raises UsageError for none or more than one way of choosing, UnknownName and NoSuchDeadTask.
    """
    from infra.tasks import queues as dead_letters

    ways = (task is not None, every, all_like is not None)
    require_one_way("name one dead task, or say --all, or --all-like one", *ways)
    names, queues = _names(queue), _queues()
    if task is not None:
        return queues, names, dead_letters.named(task)
    if all_like is None:
        return queues, names, dead_letters.every
    every_dead = (each for name in names for each in queues.dead(name, MOST))
    like = [each for each in every_dead if each.id == all_like]
    _require_found(all_like, like)
    return queues, names, dead_letters.like(like[0])


def _require_found(task: str | None, found: Sequence[object]) -> None:
    from infra.tasks.queues import NoSuchDeadTask

    if task is not None and not found:
        raise NoSuchDeadTask(f"no dead task {task}: `backlot tasks dead` lists them")


def _queues() -> TaskQueues:
    from infra.tasks.broker import shared_queues

    return shared_queues(load_settings().tasks)


def _names(queue: str | None) -> tuple[str, ...]:
    return queue_names() if queue is None else (require("queue", queue, queue_names()),)
