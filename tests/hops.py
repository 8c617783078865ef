"""How many files a request passes: `python -m tests.hops` prints them for this checkout.

A file counts when one of its functions runs for the request and not while nothing is asked. A like
is its PUT and the GET of its count after it, and a trending read is one that is not cached; both
without the consumers, which work for other reads. A translation is a comment from its POST until
the GET that has its translation, by a language model on localhost. What takes in every comment
sooner or later, for reads of its own, is left out: the index of the audit, and the analytics. It
would count on a slow machine, where a translation takes long enough, and not on a quick one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.program import Program
from tests.e2e.videos import read, upload
from tests.openai_server import openai_server
from tests.support import eventually, unused_port

IDLE_SECONDS = 25.0
"""More than twice as long as between two looks of what looks most rarely (10 s: revocations)."""
SERVING = "commands,queries,projections"
OF_OTHER_READS = (
    "engine/inspection/index.py",
    *("workers/analytics.py", "projections/analytics/", "projections/trending.py"),
)


class TracedProgram(Program):
    """The started program, and what ran in it."""

    def ran(self) -> set[str]:
        """Return the product's files whose functions ran since it was last asked."""
        ask = self.home / "ask"
        ask.touch()
        eventually(lambda: not ask.exists())
        return set((self.home / "told").read_text().split())

    def idle(self) -> set[str]:
        """Return what runs while nothing is asked."""
        self.settle()
        time.sleep(IDLE_SECONDS)
        return self.ran()

    def settle(self) -> None:
        """Let what earlier requests have begun come to its end, and forget it."""
        time.sleep(2.0)
        self.ran()

    def hops(
        self, idle: set[str], act: Callable[[], object], beside: tuple[str, ...] = ()
    ) -> set[str]:
        """Return what runs for `act` alone, but for what begins with one of these paths."""
        self.settle()
        act()
        return {each for each in self.ran() - idle if not each.startswith(beside)}


@contextmanager
def started(home: Path, **variables: str) -> Iterator[TracedProgram]:
    program = TracedProgram(home, unused_port(), variables, module="tests.traced_program")
    try:
        yield program.start()
    finally:
        program.clean_up()


def of_serving(home: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield the hops of a like and of a trending read."""
    with started(home, BACKLOT_ROLES=SERVING) as program:
        alice = program.client("alice")
        video = upload(alice)
        idle = program.idle()

        def like() -> None:
            alice.headers["Backlot-Min-Position"] = alice.put(f"/videos/{video}/like").headers[
                "Backlot-Position"
            ]
            assert read(alice.get(f"/videos/{video}/like"))["likesCount"] == 1

        yield "like", program.hops(idle, like, OF_OTHER_READS)
        del alice.headers["Backlot-Min-Position"]
        yield "trending", program.hops(idle, lambda: read(alice.get("/analytics/trending")))


def of_translation(home: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield the hops of a translation."""
    with openai_server() as model, started(home, OPENAI_BASE_URL=model.url) as program:
        alice = program.client("alice")
        path = f"/videos/{upload(alice)}/comments"
        del alice.headers["Backlot-Min-Position"]
        idle = program.idle()

        def translate() -> None:
            read(alice.post(path, json={"content": "¡Qué bonito es este vídeo, señores!"}))
            eventually(lambda: is_translated(alice, path))

        yield "translation", program.hops(idle, translate, OF_OTHER_READS)


def is_translated(client: httpx.Client, path: str) -> bool:
    items = read(client.get(path))["items"]
    return [each["translationStatus"] for each in items] == ["translated"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="backlot-hops-") as folder:
        for found in (of_serving(Path(folder) / "serving"), of_translation(Path(folder) / "all")):
            for what, hops in found:
                sys.stdout.write(f"{what} {len(hops)}\n")
                sys.stdout.write("".join(f"    {each}\n" for each in sorted(hops)))
