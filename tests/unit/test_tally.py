"""A tally has the sums of the whole log, whatever was read of it, and in which steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from hypothesis import given as for_all
from hypothesis import strategies as st

from engine.event_store import Appended, Save
from engine.lookups import Tally

CHANGES = {"liked": 1, "unliked": -1}
KEYS = [UUID(int=number) for number in range(3)]
EVENTS = st.tuples(st.sampled_from(["liked", "unliked", "other"]), st.sampled_from(KEYS))
# What others record, what this bus records, how far the read model comes, a copy that is behind.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("others"), st.lists(EVENTS, max_size=4)),
        st.tuples(st.just("own"), st.lists(EVENTS, max_size=4)),
        st.tuples(st.just("project"), st.integers(0, 6)),
        st.tuples(st.just("switch"), st.integers(0, 6)),
    ),
    max_size=40,
)


@dataclass
class World:
    """A log, a read model somewhere behind its end, and a tally."""

    most: int
    log: list[tuple[str, UUID]] = field(default_factory=list)
    reached: int = 0
    questions: int = 0

    def __post_init__(self) -> None:
        self.tally = Tally(
            reached=b"",
            sums=b"",
            changes=CHANGES,
            key_of=lambda state: UUID(bytes=state).int,
            most=self.most,
        )

    def sums(self, until: int) -> Counter[UUID]:
        found = Counter[UUID]()
        for topic, key in self.log[:until]:
            found[key] += CHANGES.get(topic, 0)
        return found

    def ask(self) -> dict[UUID, int]:
        while True:
            self.questions += 1
            after, _, most = self.tally.question(KEYS, ()).news
            wanted = [
                (None, position, topic, key.bytes)
                for position, (topic, key) in enumerate(self.log, 1)
                if position > max(after, self.reached) and topic in CHANGES
            ]
            at = self.sums(self.reached)
            columns = self.reached, [at[key] for key in KEYS]
            numbers = [key.int for key in KEYS]
            answer = self.tally.answer(numbers, columns, wanted[:most], len(self.log))
            if answer is not None:
                return dict(zip(KEYS, answer, strict=True))

    def record(self, events: list[tuple[str, UUID]]) -> None:
        """By this bus: one save is refused, and each of the others has one event."""
        head = len(self.log)
        saves = [Save([StoredEvent(key, 1, topic, key.bytes)]) for topic, key in events]
        refused = Save([StoredEvent(KEYS[0], 1, "liked", KEYS[0].bytes)])
        places = [range(head + n, head + n + 1) for n in range(1, len(saves) + 1)]
        self.tally.record([refused, *saves], Appended(head, [None, *places]))
        self.log += events

    def step(self, what: str, how: object) -> None:
        if isinstance(how, list):
            if what == "others":
                self.log += how
            else:
                self.record(how)
        elif isinstance(how, int):
            back = -how if what == "switch" else how
            self.reached = max(0, min(len(self.log), self.reached + back))


@for_all(STEPS, st.booleans())
def test_it_is_exact_at_the_end_of_the_log(steps: list[tuple[str, object]], eager: bool) -> None:
    world = World(most=1_000)
    for what, how in steps:
        world.step(what, how)
        if eager:
            assert world.ask() == {key: world.sums(len(world.log))[key] for key in KEYS}
    assert world.ask() == {key: world.sums(len(world.log))[key] for key in KEYS}


@for_all(STEPS, st.integers(0, 5))
def test_it_remembers_little_and_is_exact_once_the_read_model_has_come(
    steps: list[tuple[str, object]], most: int
) -> None:
    world = World(most)
    for what, how in steps:
        world.step(what, how)
        world.ask()
        assert world.tally.remembered <= most + 4
    world.reached = len(world.log)
    assert world.ask() == {key: world.sums(len(world.log))[key] for key in KEYS}
