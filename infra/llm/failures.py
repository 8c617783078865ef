"""The exceptions of the OpenAI SDK, as this program names them."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.llm.errors import (
    LanguageModelError,
    Overloaded,
    Refused,
    RejectedRequest,
    Throttled,
    TimedOut,
    Truncated,
    Unauthorized,
    Unreachable,
)

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAIError

# Worth telling, and known not to repeat anything: a provider's own words may.
KNOWN_CODES = frozenset(
    {
        "context_length_exceeded",
        "insufficient_quota",
        "invalid_json_schema",
        "model_not_found",
        "rate_limit_exceeded",
        "unsupported_parameter",
        "unsupported_value",
    }
)
COME_BACK = (408, 409, 425)
# Nobody is made to wait longer, whatever a header says.
LONGEST_RETRY_AFTER = 3600.0


def failure_of(error: OpenAIError) -> LanguageModelError:
    """What happened. Raise it `from None`: the SDK's text repeats what the provider said."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _refused_status(error)
    if isinstance(error, openai.APITimeoutError):
        return TimedOut("The language model did not answer in time.")
    if isinstance(error, openai.LengthFinishReasonError):
        return Truncated("The language model's answer was cut off at its limit of tokens.")
    if isinstance(error, openai.ContentFilterFinishReasonError):
        return Refused("The provider's filter of contents stopped the answer.")
    # What is left is a connection that broke, or an answer in no known form.
    return Unreachable(f"The language model can't be reached: {_reason(error)}.")


def _refused_status(error: APIStatusError) -> LanguageModelError:
    status = error.status_code
    known = f" ({error.code})" if error.code in KNOWN_CODES else ""
    told = f"HTTP {status}{known}"
    later = retry_after(error.response.headers)
    if status == 429:
        return Throttled(f"The language model takes no more calls now: {told}.", later)
    if status >= 500 or status in COME_BACK:
        return Overloaded(f"The language model failed: {told}.", later)
    if status in (401, 403):
        return Unauthorized(f"The language model did not accept OPENAI_API_KEY: {told}.")
    return RejectedRequest(
        f"The language model rejected the call: {told}; look at the model's name and at "
        "OPENAI_BASE_URL."
    )


def _reason(error: OpenAIError) -> str:
    # The SDK hides what httpx said; its class is safe to tell, and says most.
    return type(error.__cause__ or error).__name__


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None without a sane one.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        parsed = email.utils.parsedate_tz(value)
        if parsed is None:
            return None
        seconds = email.utils.mktime_tz(parsed) - time.time()
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
