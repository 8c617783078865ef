"""The way to a provider through the OpenAI SDK: in turn, bounded in time, counted, and left alone
while it fails. Whatever is asked of it goes this one way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import structlog

from infra.circuit_breaker import CircuitBreaker, CircuitState
from infra.llm.errors import BreakerOpen, LanguageModelError, Malformed, NotCalled, TimedOut
from infra.llm.failures import failure_of
from infra.llm.pace import Pace
from infra.llm.usage import Usage, count_usage, usage_of
from infra.metrics import SECONDS, counter, gauge, histogram
from infra.settings import SettingsError
from infra.settings.adapters import LanguageModelSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse

log = structlog.get_logger(__name__)

Body = TypeVar("Body")
Answer = TypeVar("Answer")

OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 5.0
# A server of one's own may need no key, but the SDK does.
NO_KEY = "none"

LLM_CALLS = counter(
    "backlot_llm_calls",
    "Calls of language models, by purpose and outcome (answered, or what went wrong).",
    ("purpose", "outcome"),
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


class LanguageModelBreaker(CircuitBreaker):
    """Opens after `failures` of the provider in a row, for `seconds`, or longer if it says so.

    An answer that can't be used is no failure of the provider.
    """

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(seconds, failures=failures, clock=clock)
        self._failures = failures
        self._show()

    def refusal(self, retry_after: float | None) -> Exception:
        return BreakerOpen(
            f"The language model has failed {self._failures} times in a row and is left alone.",
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


class Provider:
    """Any server that speaks the OpenAI API; to be used from one event loop.

    A call waits its turn for up to `timeout` seconds, and then takes up to as many.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        *,
        timeout: float,
        breaker: LanguageModelBreaker,
        pace: Pace,
        prices: dict[str, tuple[float, float]],
    ) -> None:
        """`prices` are US dollars per million tokens of input and output, by model."""
        self._client = client
        self._timeout = timeout
        self._breaker = breaker
        self._pace = pace
        self._prices = prices

    async def ask(
        self,
        send: Callable[[AsyncOpenAI], Awaitable[LegacyAPIResponse[Body]]],
        read: Callable[[LegacyAPIResponse[Body]], Answer],
        *,
        model: str,
        purpose: str,
    ) -> tuple[Answer, Usage]:
        """What `read` makes of the response to `send`, and what it took: one call.

        An answer in another form than `read` expects is Malformed. Raises LanguageModelError.
        """
        try:
            self._breaker.check()
            await self._pace.turn(self._timeout)
            with self._breaker.attempt(), LLM_SECONDS.labels(purpose).time():
                response = await self._sent(send)
                usage = usage_of(response.content)
                count_usage(usage, model, self._prices.get(model))
                answer = _checked(read, response)
        except LanguageModelError as error:
            _report(error, purpose, model)
            raise
        LLM_CALLS.labels(purpose, "answered").inc()
        return answer, usage

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _sent(
        self, send: Callable[[AsyncOpenAI], Awaitable[LegacyAPIResponse[Body]]]
    ) -> LegacyAPIResponse[Body]:
        from openai import OpenAIError

        try:
            # The SDK's own timeout begins anew with every byte.
            async with asyncio.timeout(self._timeout):
                return await send(self._client)
        except OpenAIError as error:
            raise failure_of(error) from None
        except TimeoutError:
            raise TimedOut("The language model did not answer in time.") from None


def make_provider(settings: LanguageModelSettings) -> Provider | None:
    """The configured one, or None where there is neither a key nor a URL.

    Raises SettingsError for a key that can't be sent.
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
        pace=Pace(settings.calls_per_minute),
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
    read: Callable[[LegacyAPIResponse[Body]], Answer], response: LegacyAPIResponse[Body]
) -> Answer:
    from openai import OpenAIError

    try:
        return read(response)
    except OpenAIError as error:
        raise failure_of(error) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The SDK checks little of an answer: whatever it does not may have any form.
        kind = type(error).__name__
        raise Malformed(f"The language model's answer has another form: {kind}.") from None


def _report(error: LanguageModelError, purpose: str, model: str) -> None:
    LLM_CALLS.labels(purpose, error.outcome).inc()
    # While the breaker is open that was said once, when it opened.
    tell = log.debug if isinstance(error, NotCalled) else log.warning
    tell("llm_call_failed", purpose=purpose, model=model, outcome=error.outcome, error=str(error))
