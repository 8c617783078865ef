"""Where the commands that look into the database find it."""

from __future__ import annotations

from infra.errors import OperatorError
from infra.settings import Settings


class NothingRuns(OperatorError):
    """The embedded database is not started."""


class DatabaseAway(OperatorError):
    """The database does not answer, or is not one of Backlot's."""


def database_url(settings: Settings) -> str:
    """The libpq URL of the database; raises NothingRuns when the embedded one does not run."""
    from infra.data_folder import cluster_path
    from infra.postgres import running_url

    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    url = running_url(cluster_path(settings.server.data_dir))
    if url is None:
        raise NothingRuns(f"nothing runs in {settings.server.data_dir}: start `make up` first")
    return url
