"""The library's own test cases, on our recorders and factory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from eventsourcing.persistence import ApplicationRecorder, InfrastructureFactory, ProcessRecorder
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresTrackingRecorder
from eventsourcing.tests import persistence as library
from eventsourcing.utils import Environment

from engine.event_store import (
    GroupCommitFactory,
    GroupCommitProcessRecorder,
    GroupCommitRecorder,
)
from tests.integration.event_log import environment, events, recording


class OnPostgres:
    """Gives each test case a database of its own; closes what it opened there."""

    env: Environment
    opened: InfrastructureFactory

    @pytest.fixture(autouse=True)
    def _database(self, database_url: str) -> None:
        self.env = environment(database_url)

    def open(self) -> InfrastructureFactory:
        self.opened = InfrastructureFactory.construct(self.env)
        return self.opened

    def tearDown(self) -> None:
        if hasattr(self, "opened"):
            self.opened.close()


class TestApplicationRecorder(OnPostgres, library.ApplicationRecorderTestCase):
    def create_recorder(self) -> ApplicationRecorder:
        recorder = self.open().application_recorder()
        assert type(recorder) is GroupCommitRecorder
        return recorder

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestNonInterleavingNotificationIDs(
    OnPostgres, library.NonInterleavingNotificationIDsBaseCase
):
    def create_recorder(self) -> ApplicationRecorder:
        return self.open().application_recorder()


class TestProcessRecorder(OnPostgres, library.ProcessRecorderTestCase):
    def create_recorder(self) -> ProcessRecorder:
        return self.open().process_recorder()


class TestProcessRecorderAsApplicationRecorder(OnPostgres, library.ApplicationRecorderTestCase):
    def create_recorder(self) -> ApplicationRecorder:
        return self.open().process_recorder()

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class OtherTrackingRecorder(PostgresTrackingRecorder):
    """Any other class of tracking recorder."""


class TestInfrastructureFactory(
    OnPostgres, library.InfrastructureFactoryTestCase[GroupCommitFactory]
):
    def expected_factory_class(self) -> type[GroupCommitFactory]:
        return GroupCommitFactory

    def expected_aggregate_recorder_class(self) -> type[PostgresAggregateRecorder]:
        return PostgresAggregateRecorder

    def expected_application_recorder_class(self) -> type[GroupCommitRecorder]:
        return GroupCommitRecorder

    def expected_tracking_recorder_class(self) -> type[PostgresTrackingRecorder]:
        return PostgresTrackingRecorder

    def tracking_recorder_subclass(self) -> type[PostgresTrackingRecorder]:
        return OtherTrackingRecorder

    def expected_process_recorder_class(self) -> type[GroupCommitProcessRecorder]:
        return GroupCommitProcessRecorder

    def tearDown(self) -> None:
        self.factory.close()


def test_several_processes_may_start_at_once(database_url: str) -> None:
    def start(_: int) -> Sequence[int] | None:
        with recording(database_url) as recorder:
            return recorder.insert_events(events())

    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(start, range(8)))
    assert sorted(position for each in saved for position in each or ()) == [*range(1, 9)]


def test_the_factory_finds_what_a_recorder_of_ours_wrote(log_url: str) -> None:
    with recording(log_url) as recorder:
        written = events(3)
        recorder.insert_events(written)
        with InfrastructureFactory.construct(environment(log_url, name="backlot")) as factory:
            assert factory.application_recorder().select_events(written[0].originator_id) == written
