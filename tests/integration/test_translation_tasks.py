"""`dramatiq workers.app` on real Redis: from an event over a task to what the log says of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from dramatiq import Actor, Broker
from structlog.testing import capture_logs

from engine.log import EventMapper, event_id
from infra.settings import Settings, load_settings
from infra.tasks.broker import make_broker, task_queues
from infra.tasks.queues import TRANSLATION, every
from tests.fork_server import ForkedProcess
from tests.integration.buses import decided, open_bus
from tests.integration.consuming_support import LogStage, consuming, processed, run
from tests.integration.event_log import logged
from tests.integration.person_support import opened
from tests.integration.projection_support import Writer
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.integration.task_support import QUICK
from tests.openai_server import OpenAIServer, openai_server, refusal, status
from tests.support import DEADLINE_SECONDS, eventually, until, unused_port
from workers.tasks import TaskMeans, declare
from workers.translation import TranslationConsumer, make_consumer

ROOT = Path(__file__).parents[2]
ARGUMENTS = ("workers.app", "--processes=1", "--threads=2", "--skip-logging")
SPANISH = "¡Qué bonito es este vídeo, muchas gracias a todos!"


def nowhere() -> TaskMeans:
    raise AssertionError("nothing runs here")


class Desk:
    """A log, a queue, and processes that work on both."""

    def __init__(
        self,
        database_url: str,
        writer: Writer,
        redis: RedisServer,
        provider: OpenAIServer,
        log: Path,
    ) -> None:
        self.database_url, self.writer = database_url, writer
        self.redis, self.provider, self.log = redis, provider, log
        self.video = writer.video().id
        with psycopg.connect(database_url, autocommit=True) as conn:
            conn.execute("INSERT INTO backlot_former_names VALUES ('alice'), ('bob')")
        self.variables = {
            **QUICK,
            "DATABASE_URL": database_url,
            "KEY_ENCRYPTION_KEY": secrets.token_hex(32),
            "REDIS_URL": redis.url,
            "OPENAI_BASE_URL": provider.url,
            # More than the calls of a test: what is given up here was called each time.
            "LLM_BREAKER_FAILURES": "50",
        }
        self.settings: Settings = load_settings(self.variables)
        self.queues = task_queues(self.settings.tasks)
        self.broker: Broker = make_broker(self.settings.tasks)
        self.tasks = declare(self.broker, nowhere)

    @property
    def translate_comment(self) -> Actor[..., None]:
        return self.tasks.translate_comment

    def comment(self, content: str = SPANISH) -> UUID:
        return self.writer.comment(self.video, "bob", content).id

    def environment(self) -> dict[str, str]:
        own = {"BACKLOT_PORT": str(unused_port()), "PYTHONPATH": str(ROOT)}
        return os.environ | self.variables | own

    @contextmanager
    def working(self) -> Iterator[None]:
        """A process as an operator starts it."""
        process = self._begin()
        try:
            yield
        finally:
            process.kill_session()
            process.wait(10)

    def kinds(self, comment: UUID) -> list[str]:
        return decided(self.database_url, comment)

    def ends(self, comment: UUID, kind: str) -> bool:
        return self.kinds(comment)[-1] == kind

    def reason(self, comment: UUID) -> tuple[str, str]:
        """Why it failed, and in which conversation."""
        stored = [e for e in logged(self.database_url).values() if e.originator_id == comment][-1]
        last = vars(EventMapper().to_domain_event(stored))
        return last["reason"], last["correlation_id"]

    def dead(self) -> list[str]:
        return [letter.id for letter in self.queues.dead(TRANSLATION, 10)]

    def refused(self) -> str:
        """What a process says that does not start."""
        assert self._begin().wait(DEADLINE_SECONDS) != 0
        return self.log.read_text()

    def _begin(self) -> ForkedProcess:
        return ForkedProcess(
            "dramatiq",
            ARGUMENTS,
            cwd=ROOT,
            env=self.environment(),
            stdout=Path(os.devnull),
            stderr=self.log,
            start_new_session=True,
        )


@pytest.fixture
def desk(database_url: str, writer: Writer, tmp_path: Path) -> Iterator[Desk]:
    with ExitStack() as stack:
        (server,) = stack.enter_context(redis_servers(1, tmp_path))
        provider = stack.enter_context(openai_server())
        opened = Desk(database_url, writer, server, provider, tmp_path / "tasks.log")
        stack.callback(opened.broker.close)
        yield opened


@asynccontextmanager
async def following(desk: Desk) -> AsyncIterator[None]:
    """The consumer, as a process with the role runs it."""
    stage = LogStage(desk.database_url, desk.writer)
    settings, task = desk.settings.translation, desk.translate_comment
    async with (
        open_bus(desk.writer.recorder) as bus,
        consuming(stage, make_consumer(settings, task, bus, translates=True)),
    ):
        yield


def handled(desk: Desk) -> set[UUID]:
    """The messages that the consumer has done with."""
    return processed(desk.database_url, TranslationConsumer.name)


def consumed(desk: Desk, *comments: UUID) -> None:
    """Have the tasks of these comments sent, as the consumer sends them."""
    wanted = {event_id(comment, 1) for comment in comments}

    async def scenario() -> None:
        async with following(desk):
            await until(lambda: wanted <= handled(desk))

    run(scenario)


def test_every_comment_of_a_batch_is_translated(desk: Desk) -> None:
    comments = [desk.comment(f"{SPANISH} {number}") for number in range(20)]
    consumed(desk, *comments)
    with desk.working():
        eventually(lambda: all(desk.ends(each, "translated") for each in comments))
    assert len(desk.provider.calls) == 20


def test_given_up_after_the_last_attempt_and_translated_when_it_is_driven_again(
    desk: Desk,
) -> None:
    desk.provider.otherwise = lambda call: status(500)
    comment = desk.comment()
    consumed(desk, comment)
    with desk.working():
        eventually(lambda: len(desk.dead()) == 1)
        assert desk.kinds(comment) == ["posted", "language_detected", "translation_failed"]
        assert desk.reason(comment) == ("overloaded", "correlation")
        assert len(desk.provider.calls) == 1 + desk.settings.tasks.max_retries
        desk.provider.forget()
        assert desk.queues.redrive(TRANSLATION, every) != []
        eventually(lambda: desk.ends(comment, "translated"))
    assert desk.dead() == []
    assert len(desk.provider.calls) == 1


def test_what_would_fail_again_is_no_dead_letter(desk: Desk) -> None:
    desk.provider.otherwise = lambda call: refusal()
    comment = desk.comment()
    consumed(desk, comment)
    with desk.working():
        eventually(lambda: desk.ends(comment, "translation_failed"))
        eventually(lambda: not any(each.taken for each in desk.queues.depths()))
    assert desk.reason(comment)[0] == "refused"
    assert len(desk.provider.calls) == 1
    assert desk.dead() == []


def test_nothing_counts_as_handled_while_the_broker_is_away(desk: Desk) -> None:
    comment = desk.comment()
    desk.redis.kill()

    async def scenario() -> None:
        with capture_logs() as logs:
            async with following(desk):
                await until(lambda: any(each["event"] == "consumer_interrupted" for each in logs))
                assert handled(desk) == set()
                desk.redis.start()
                await until(lambda: handled(desk) == {event_id(comment, 1)}, 60)

    run(scenario)
    with desk.working():
        eventually(lambda: desk.ends(comment, "translated"))


def test_a_process_with_another_key_of_texts_ends_with_a_line(desk: Desk) -> None:
    with opened(desk.database_url):
        pass
    said = desk.refused()
    assert "workers.app: KEY_ENCRYPTION_KEY is another key-encryption key" in said
    assert "Traceback" not in said
