"""What encrypting texts costs: comments recorded, liked and replayed with it and without in turns.

Recording is measured as CPU of a server that has it switched on and off; a replay by its rate, over
a log of the same comments with texts encrypted, and over one without.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from eventsourcing.persistence import StoredEvent

from benchmarks.bench import Bench, say
from benchmarks.like import Clients, Server, backlot
from benchmarks.log import ORIGIN, VIDEOS, fill
from benchmarks.replaying import bring_up, replay
from benchmarks.results import Comparison, Side
from benchmarks.stretches import compared, stretches
from domain.comment import Comment
from domain.model import Origin
from engine.log import MAPPER
from engine.persons import Persons
from infra.http.auth import mint_token
from infra.key_encryption import GivenKey
from projections.comments import Comments

BODY = '{"content": "What a fine film! I have seen it three times, and cried each time."}'
COMMENTS = [f"/videos/{video}/comments" for video in VIDEOS]
# 0.95 of the comments, 0.98 of the likes in the same time.
MOST_COMMENTS, MOST_LIKES, LEAST_REPLAYED = 1 / 0.95, 1 / 0.98, 0.9
KEK = GivenKey(secrets.token_hex(32))


def run(bench: Bench) -> list[Comparison]:
    """CPU in µs per comment and per like, replays in events/s."""
    return [*_recorded(bench), _replayed(bench)]


def _recorded(bench: Bench) -> Iterator[Comparison]:
    """3,000 viewers comment, then like, without a pause."""
    secret = secrets.token_urlsafe(32)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    # Every token is verified once before it counts.
    clients = Clients(tokens, bench.size(6, 1), bench.size(45, 15))
    with backlot(bench, secret, "encryption", RATE_LIMITS="off") as server:

        def measured(what: str, load: Callable[[], object], most: float) -> Comparison:
            say(f"{what}s, while encryption is switched on and off")
            found = stretches(
                server,
                "encryption",
                f"{what}s",
                load,
                warmup_seconds=clients.warmup_seconds,
                seconds=clients.seconds,
            )
            names = f"{what}, texts encrypted", f"{what}, texts as they are"
            unit = f"µs of CPU per {what}"
            return compared("encryption", unit, names, found, at_most=most)

        yield measured("comment", lambda: _comment(clients, server), MOST_COMMENTS)
        yield measured("like", lambda: clients.like(server, 1), MOST_LIKES)


def _comment(clients: Clients, server: Server) -> None:
    clients.load(server.served, COMMENTS, 0, body=BODY)


def _replayed(bench: Bench) -> Comparison:
    """Each round as a process finds it that knows no key yet."""
    events, authors = bench.size(60_000, 3_000), bench.size(3_000, 100)
    sealed, plain = bench.database(), bench.database()
    with _persons(sealed) as persons:
        persons.open()
        named = [persons.admit(f"viewer-{number}") for number in range(authors)]
        fill(sealed, events, lambda index: _comment_event(index, named))
        bring_up(sealed, Comments(), events)
    fill(plain, events, lambda index: _comment_event(index, named))
    bring_up(plain, Comments(), events)

    def decrypted(_: int) -> float:
        with _persons(sealed):
            return events / replay(sealed, Comments())

    measured = bench.interleave(
        bench.size(5, 1),
        {
            "replay of comments, texts encrypted": decrypted,
            "replay of comments, texts as they are": lambda _: events / replay(plain, Comments()),
        },
    )
    ours, baseline = (Side(name, rates) for name, rates in measured.items())
    return Comparison(
        "encryption", "events/s", ours, baseline, at_least=LEAST_REPLAYED, paired=True
    )


@contextmanager
def _persons(url: str) -> Iterator[Persons]:
    """Persons whose keys this process encrypts and decrypts with for the block."""
    persons = Persons(url, KEK)
    MAPPER.ciphers = persons
    try:
        yield persons
    finally:
        MAPPER.ciphers = None
        persons.close()


def _comment_event(index: int, authors: list[str]) -> StoredEvent:
    """The index-th event of ever more comments: each is posted, read by the detector, edited."""
    number, step = divmod(index, 3)
    author = authors[number % len(authors)]
    origin = Origin(author, ORIGIN.at, ORIGIN.correlation_id, ORIGIN.causation_id)
    comment = Comment.blank(UUID(int=0xC0F << 96 | number))
    comment.post(VIDEOS[number % len(VIDEOS)], f"What a fine film, number {number}!", origin)
    comment.detect_language(1, "en", 0.97, "bench", "en", ORIGIN)
    comment.edit(f"What a fine film, seen {number} times!", origin)
    return MAPPER.to_stored_event(comment.collect_events()[step])
