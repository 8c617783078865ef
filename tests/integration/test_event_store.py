"""The library's own test cases, on our recorders and factory."""

from __future__ import annotations

import pytest
from eventsourcing.persistence import ApplicationRecorder, InfrastructureFactory, ProcessRecorder
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresTrackingRecorder
from eventsourcing.tests import persistence as library
from eventsourcing.utils import Environment

from infra.event_store import GroupCommitFactory, GroupCommitProcessRecorder, GroupCommitRecorder
from tests.integration.event_log import environment


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
