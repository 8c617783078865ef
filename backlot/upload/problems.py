"""What ends an upload, told in one line."""

from __future__ import annotations

from infra.errors import OperatorError


class UploadFailed(OperatorError):
    """The file is not uploaded; the text says why, and what to do."""


class FileChanged(UploadFailed):
    """The file is no longer what the upload began with, so its parts don't make one file."""


class UploadEnded(UploadFailed):
    """The server no longer takes parts of this upload."""
