"""A client of Backlot's API; `backlot_client.generated` is made by `make clients`."""

from backlot_client.async_client import AsyncBacklot
from backlot_client.async_uploads import AsyncUpload
from backlot_client.client import Backlot
from backlot_client.live import (
    CommentRemoved,
    CommentShown,
    LikesCounted,
    LiveEvent,
    Reset,
    VideoRemoved,
)
from backlot_client.problem import Problem
from backlot_client.published import PublishedPage
from backlot_client.retries import RetryPolicy
from backlot_client.uploads import FileChanged, Progress, Upload, UploadEnded
from backlot_client.webhooks import InvalidSignature, verify_webhook

__all__ = [
    "AsyncBacklot",
    "AsyncUpload",
    "Backlot",
    "CommentRemoved",
    "CommentShown",
    "FileChanged",
    "InvalidSignature",
    "LikesCounted",
    "LiveEvent",
    "Problem",
    "Progress",
    "PublishedPage",
    "Reset",
    "RetryPolicy",
    "Upload",
    "UploadEnded",
    "VideoRemoved",
    "verify_webhook",
]
