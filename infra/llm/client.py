"""The port of language models, which answer in a given form, and the OpenAI SDK behind it.

Each call is paced, bounded in time and counted; a circuit breaker leaves the provider alone while
it fails.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import orjson
import structlog
from pydantic import BaseModel

from infra.circuit_breaker import CircuitBreaker, CircuitState
from infra.llm.errors import (
    BreakerOpen,
    LanguageModelError,
    Malformed,
    NotCalled,
    Overloaded,
    Refused,
    RejectedRequest,
    Throttled,
    TimedOut,
    Truncated,
    Unauthorized,
    Unreachable,
)
from infra.llm.limits import LLM_CALLS, Budget, Pace
from infra.metrics import SECONDS, counter, gauge, histogram
from infra.settings import SettingsError
from infra.settings.adapters import LanguageModelSettings

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAIError
    from openai._legacy_response import LegacyAPIResponse
    from openai.types.chat import ParsedChatCompletion
    from redis.asyncio import Redis

log = structlog.get_logger(__name__)

MILLION = 1_000_000

# Worth telling, and known not to repeat anything: a provider's own words may.
_KNOWN_CODES = """
context_length_exceeded insufficient_quota invalid_json_schema model_not_found rate_limit_exceeded
unsupported_parameter unsupported_value
"""
KNOWN_CODES = frozenset(_KNOWN_CODES.split())
COME_BACK = (408, 409, 425)
# Nobody is made to wait longer, whatever a header says.
LONGEST_RETRY_AFTER = 3600.0
OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 5.0
# A server of one's own may need no key, but the SDK does.
NO_KEY = "none"

LLM_TOKENS = counter(
    "backlot_llm_tokens",
    "Tokens that providers counted, by model and direction (input, output).",
    ("model", "direction"),
)
LLM_COST_USD = counter(
    "backlot_llm_cost_usd",
    "What those tokens cost in US dollars, for models with a price in LLM_PRICES.",
    ("model",),
)
LLM_SECONDS = histogram(
    "backlot_llm_seconds",
    "Time of one call of a language model, without waiting for its turn.",
    ("purpose",),
    buckets=(*SECONDS, 30.0, 60.0),
)
LLM_BREAKER_STATE = gauge(
    "backlot_llm_breaker_state",
    "1 for the state of the circuit breaker before the language model (closed, open, half-open).",
    ("state",),
)

Body = TypeVar("Body")
Content = TypeVar("Content")
Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Parsed(Generic[Answer]):
    """An answer of the form that was asked for, and what it took."""

    answer: Answer
    model: str
    input_tokens: int
    output_tokens: int


class LanguageModel(Protocol):
    """Whatever answers questions; to be used from one event loop."""

    async def parse(
        self,
        system: str,
        user: str,
        schema: type[Answer],
        *,
        model: str,
        purpose: str,
        max_output_tokens: int,
    ) -> Parsed[Answer]:
        """Return the answer of `model` to `user` under the instructions `system`, as a `schema`.

        One call, never repeated by itself. `purpose` is what metrics count it under. Raise
        LanguageModelError.
        """

    async def aclose(self) -> None:
        """Close the connections."""


class OpenAIModel:
    """The chat completions of a provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.aclose = provider.aclose

    async def parse(
        self,
        system: str,
        user: str,
        schema: type[Answer],
        *,
        model: str,
        purpose: str,
        max_output_tokens: int,
    ) -> Parsed[Answer]:
        """As the port has it."""

        def send(client: AsyncOpenAI) -> Awaitable[LegacyAPIResponse[ParsedChatCompletion[Answer]]]:
            return client.chat.completions.with_raw_response.parse(
                model=model,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                response_format=schema,
                temperature=0,
                max_completion_tokens=max_output_tokens,
            )

        def read(response: LegacyAPIResponse[ParsedChatCompletion[Answer]]) -> Answer:
            message = response.parse().choices[0].message
            refusal, answer = message.refusal, message.parsed
            if refusal:
                raise Refused("The language model refused to answer.")
            if not isinstance(answer, schema):
                raise Malformed("The language model's answer is empty.")
            return answer

        answer, usage = await self._provider.ask(send, read, model=model, purpose=purpose)
        return Parsed(answer, model, usage.input_tokens, usage.output_tokens)


SPENDER: ContextVar[str | None] = ContextVar("spender", default=None)
"""For which user language models are called; None for nobody in particular."""


@contextmanager
def spending(user_id: str | None) -> Iterator[None]:
    """Count the calls of this block, and of the tasks that it begins, as the user's."""
    token = SPENDER.set(user_id)
    try:
        yield
    finally:
        SPENDER.reset(token)


class BudgetedModel:
    """A model whose calls a day are counted, for the user that `spending` names."""

    def __init__(self, model: LanguageModel, budget: Budget) -> None:
        self._model, self._budget = model, budget
        self.aclose = model.aclose

    async def parse(
        self,
        system: str,
        user: str,
        schema: type[Answer],
        *,
        model: str,
        purpose: str,
        max_output_tokens: int,
    ) -> Parsed[Answer]:
        """As the port has it; raise BudgetSpent as well, which calls nobody."""
        async with self._budget.call(SPENDER.get(), purpose):
            return await self._model.parse(
                system, user, schema, model=model, purpose=purpose,
                max_output_tokens=max_output_tokens,
            )  # fmt: skip


def make_language_model(
    settings: LanguageModelSettings, redis: Redis | None = None
) -> LanguageModel | None:
    """Return the configured model, or None where there is neither a key nor a URL.

    With a Redis it keeps to the pace of all processes together. Raise SettingsError for a key that
    can't be sent.
    """
    provider = make_provider(settings, redis)
    return None if provider is None else OpenAIModel(provider)


class Usage(NamedTuple):
    """Tokens of one call; 0 where the provider did not say."""

    input_tokens: int
    output_tokens: int


def usage_of(body: bytes) -> Usage:
    """Return what a response says that it took, whether its answer can be used or not."""
    try:
        usage = orjson.loads(body)["usage"]
        # Embeddings have no output that would be counted.
        answered = usage.get("completion_tokens", 0)
        return Usage(int(usage["prompt_tokens"]), int(answered))
    except (AttributeError, LookupError, TypeError, ValueError):
        # Servers may leave it out, and an answer in no known form is told about elsewhere.
        return Usage(0, 0)


def count_usage(usage: Usage, model: str, price: tuple[float, float] | None) -> None:
    """Count the tokens, and their cost where the model's price is known (per million tokens)."""
    LLM_TOKENS.labels(model, "input").inc(max(usage.input_tokens, 0))
    LLM_TOKENS.labels(model, "output").inc(max(usage.output_tokens, 0))
    if price is not None:
        cost = usage.input_tokens * price[0] + usage.output_tokens * price[1]
        LLM_COST_USD.labels(model).inc(max(cost, 0.0) / MILLION)


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


class LanguageModelBreaker(CircuitBreaker):
    """Opens after `failures` of the provider in a row, for `seconds`, or longer if it says so.

    An answer that can't be used is no failure of the provider.
    """

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(seconds, failures=failures, clock=clock)
        self._show()

    def refusal(self, retry_after: float | None) -> Exception:
        return BreakerOpen(
            f"The language model has failed {self._most} times in a row and is left alone.",
            retry_after=retry_after,
        )

    def blames(self, error: BaseException) -> bool | None:
        return error.provider_failed if isinstance(error, LanguageModelError) else None

    def changed(self, before: CircuitState, error: BaseException | None) -> None:
        self._show()
        if self.state is CircuitState.CLOSED:
            log.info("llm_breaker_closed")
        elif error is not None:
            seconds = round(self.seconds_left, 3)
            log.warning("llm_breaker_opened", seconds=seconds, error=str(error))

    def _show(self) -> None:
        for each in CircuitState:
            LLM_BREAKER_STATE.labels(each).set(each is self.state)


@dataclass(frozen=True)
class Provider:
    """Any server that speaks the OpenAI API; to be used from one event loop.

    A call waits its turn for up to `timeout` seconds, and then takes up to as many. `prices` are US
    dollars per million tokens of input and output, by model.
    """

    client: AsyncOpenAI
    timeout: float
    breaker: LanguageModelBreaker
    pace: Pace
    prices: dict[str, tuple[float, float]]

    async def ask(
        self,
        send: Callable[[AsyncOpenAI], Awaitable[LegacyAPIResponse[Body]]],
        read: Callable[[LegacyAPIResponse[Body]], Content],
        *,
        model: str,
        purpose: str,
    ) -> tuple[Content, Usage]:
        """Return what `read` makes of the response to `send`, and what it took: one call.

        An answer in another form than `read` expects is Malformed. Raise LanguageModelError.
        """
        try:
            self.breaker.check()
            await self.pace.turn(self.timeout)
            with self.breaker.attempt(), LLM_SECONDS.labels(purpose).time():
                response = await self._sent(send)
                usage = usage_of(response.content)
                count_usage(usage, model, self.prices.get(model))
                content = _checked(read, response)
        except LanguageModelError as error:
            LLM_CALLS.labels(purpose, error.outcome).inc()
            # While the breaker is open that was said once, when it opened.
            tell = log.debug if isinstance(error, NotCalled) else log.warning
            told = {"outcome": error.outcome, "error": str(error)}
            tell("llm_call_failed", purpose=purpose, model=model, **told)
            raise
        LLM_CALLS.labels(purpose, "answered").inc()
        return content, usage

    async def _sent(
        self, send: Callable[[AsyncOpenAI], Awaitable[LegacyAPIResponse[Body]]]
    ) -> LegacyAPIResponse[Body]:
        from openai import OpenAIError

        try:
            # The SDK's own timeout begins anew with every byte.
            async with asyncio.timeout(self.timeout):
                return await send(self.client)
        except OpenAIError as error:
            raise failure_of(error) from None
        except TimeoutError:
            raise TimedOut("The language model did not answer in time.") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.close()


def make_provider(settings: LanguageModelSettings, redis: Redis | None = None) -> Provider | None:
    """Return the configured provider, or None where there is neither a key nor a URL.

    With a Redis it keeps to the pace of all processes together. Raise SettingsError for a key that
    can't be sent.
    """
    if not settings.configured:
        return None
    from openai import AsyncOpenAI, Timeout

    seconds = settings.timeout_seconds
    client = AsyncOpenAI(
        api_key=_key(settings),
        base_url=settings.base_url or OPENAI,
        timeout=Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        # Retries are the task's, so that one failure is one call.
        max_retries=0,
    )
    return Provider(
        client,
        timeout=seconds,
        breaker=LanguageModelBreaker(settings.breaker_failures, settings.breaker_seconds),
        pace=Pace(settings.calls_per_minute, redis),
        prices=settings.prices,
    )


def _key(settings: LanguageModelSettings) -> str:
    if settings.api_key is None:
        return NO_KEY
    key = settings.api_key.get_secret_value().strip()
    if not key.isascii() or not key.isprintable():
        raise SettingsError("OPENAI_API_KEY: has characters that no key has; copy it again")
    return key


def _checked(
    read: Callable[[LegacyAPIResponse[Body]], Content], response: LegacyAPIResponse[Body]
) -> Content:
    from openai import OpenAIError

    try:
        return read(response)
    except OpenAIError as error:
        raise failure_of(error) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The SDK checks little of an answer: whatever it does not may have any form.
        kind = type(error).__name__
        raise Malformed(f"The language model's answer has another form: {kind}.") from None
