"""What can go wrong with a call of a language model, by what has to be done about it.

What the OpenAI SDK raises is told as one of these. No text repeats what the provider or the model
said: it may hold a comment, or a piece of the key.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAIError

# Worth telling, and known not to repeat anything: a provider's own words may.
_KNOWN_CODES = """
context_length_exceeded insufficient_quota invalid_json_schema model_not_found rate_limit_exceeded
unsupported_parameter unsupported_value
"""
KNOWN_CODES = frozenset(_KNOWN_CODES.split())
COME_BACK = (408, 409, 425)
# Nobody is made to wait longer, whatever a header says.
LONGEST_RETRY_AFTER = 3600.0


class LanguageModelError(Exception):
    """A call without a usable answer.

    `retryable` says whether the same call may succeed later, `retry_after` how many seconds to
    wait at least, where somebody said so. `outcome` is its name in metrics. `provider_failed`
    ones are what the circuit breaker counts.
    """

    outcome: ClassVar[str] = "failed"
    retryable: ClassVar[bool] = False
    provider_failed: ClassVar[bool] = False

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ProviderFailed(LanguageModelError):
    """The provider did not do its work; it may later."""

    retryable = True
    provider_failed = True


class Throttled(ProviderFailed):
    """429: too many calls or tokens, or the account's quota is used up."""

    outcome = "throttled"


class Overloaded(ProviderFailed):
    """A 5xx answer, or another status that asks to come back."""

    outcome = "overloaded"


class TimedOut(ProviderFailed):
    """No whole answer within LLM_TIMEOUT_SECONDS."""

    outcome = "timeout"


class Unreachable(ProviderFailed):
    """The connection could not be made, or broke."""

    outcome = "unreachable"


class BadAnswer(LanguageModelError):
    """The model answered, and the answer can't be used."""


class Refused(BadAnswer):
    """The model, or the provider's filter of contents, does not want to; it won't later either."""

    outcome = "refused"


class Truncated(BadAnswer):
    """The answer was cut off at its limit of tokens, and would be again."""

    outcome = "truncated"


class Malformed(BadAnswer):
    """The answer is empty or not of the form that was asked for; another one may be."""

    outcome = "malformed"
    retryable = True


class RejectedRequest(LanguageModelError):
    """A 4xx answer: the model's name, or what it was asked for, is not the provider's."""

    outcome = "rejected"


class Unauthorized(LanguageModelError):
    """The key is missing, wrong, or may not use the model."""

    outcome = "unauthorized"


class NotCalled(LanguageModelError):
    """The call was not made at all; later it may be."""

    retryable = True


class BreakerOpen(NotCalled):
    """The provider has failed so often that it is left alone for `retry_after` seconds."""

    outcome = "breaker_open"


class TooManyCalls(NotCalled):
    """So many calls wait for LLM_CALLS_PER_MINUTE that this one's turn is too far away."""

    outcome = "too_many"


class BudgetSpent(NotCalled):
    """The calls of all users for today have been made; `retry_after` is the rest of the day."""

    outcome = "budget_spent"


class UserBudgetSpent(BudgetSpent):
    """The calls of `user_id` for today have been made."""

    outcome = "user_budget_spent"
    user_id: str | None = None


NO_LANGUAGE_MODEL = "no_language_model"
"""Why nobody could do it where none is configured."""
PASSING = tuple(
    kind.outcome
    for kind in (*ProviderFailed.__subclasses__(), *NotCalled.__subclasses__())
    if kind is not BudgetSpent
)
"""Outcomes that may soon be others."""
UNPAID = (BudgetSpent.outcome, UserBudgetSpent.outcome)
"""Outcomes that stay until the next day (UTC)."""


def failure_of(error: OpenAIError) -> LanguageModelError:
    """Return what happened. Raise it `from None`: the SDK's text repeats what the provider said."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _refused_status(error)
    if isinstance(error, openai.APITimeoutError):
        return TimedOut("The language model did not answer in time.")
    if isinstance(error, openai.LengthFinishReasonError):
        return Truncated("The language model's answer was cut off at its limit of tokens.")
    if isinstance(error, openai.ContentFilterFinishReasonError):
        return Refused("The provider's filter of contents stopped the answer.")
    # What is left is a connection that broke, or an answer in no known form. The SDK hides what
    # httpx said; its class is safe to tell, and says most.
    reason = type(error.__cause__ or error).__name__
    return Unreachable(f"The language model can't be reached: {reason}.")


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


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or a date; None without a sane one.

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
