"""Calls of a language model through the OpenAI SDK: bounded in time and number, and counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from infra import metrics
from infra.llm.breaker import CircuitBreaker
from infra.llm.errors import LanguageModelError, Malformed, NotCalled, Refused, TimedOut
from infra.llm.failures import failure_of
from infra.llm.pace import Pace
from infra.llm.port import Answer, LanguageModel, Parsed
from infra.llm.usage import count_usage, usage_of
from infra.settings import Settings, SettingsError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse
    from openai.types.chat import ParsedChatCompletion

log = structlog.get_logger(__name__)

OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 5.0
# A server of one's own may need no key, but the SDK does.
NO_KEY = "none"


class OpenAIModel:
    """Any server that speaks the OpenAI API; to be used from one event loop.

    A call waits its turn for up to `timeout` seconds, and then takes up to as many.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        *,
        timeout: float,
        breaker: CircuitBreaker,
        pace: Pace,
        prices: dict[str, tuple[float, float]],
    ) -> None:
        """`prices` are US dollars per million tokens of input and output, by model."""
        self._client = client
        self._timeout = timeout
        self._breaker = breaker
        self._pace = pace
        self._prices = prices

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
        try:
            self._breaker.check()
            await self._pace.turn(self._timeout)
            with self._breaker.attempt(), metrics.LLM_SECONDS.labels(purpose).time():
                parsed = await self._call(system, user, schema, model, max_output_tokens)
        except LanguageModelError as error:
            _report(error, purpose, model)
            raise
        metrics.LLM_CALLS.labels(purpose, "answered").inc()
        return parsed

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _call(
        self, system: str, user: str, schema: type[Answer], model: str, max_output_tokens: int
    ) -> Parsed[Answer]:
        from openai import OpenAIError

        try:
            # The SDK's own timeout begins anew with every byte.
            async with asyncio.timeout(self._timeout):
                response = await self._client.chat.completions.with_raw_response.parse(
                    model=model,
                    messages=[
                        {"role": "system", "content": system},
                        {"role": "user", "content": user},
                    ],
                    response_format=schema,
                    temperature=0,
                    max_completion_tokens=max_output_tokens,
                )
        except OpenAIError as error:
            raise failure_of(error) from None
        except TimeoutError:
            raise TimedOut("The language model did not answer in time.") from None
        return self._parsed(response, schema, model)

    def _parsed(
        self,
        response: LegacyAPIResponse[ParsedChatCompletion[Answer]],
        schema: type[Answer],
        model: str,
    ) -> Parsed[Answer]:
        usage = usage_of(response.content)
        count_usage(usage, model, self._prices.get(model))
        answer = _answer(response, schema)
        return Parsed(answer, model, usage.input_tokens, usage.output_tokens)


def make_language_model(settings: Settings) -> LanguageModel | None:
    """The configured model, or None where there is neither a key nor a URL.

    Raises SettingsError for a key that can't be sent.
    """
    if not settings.has_llm:
        return None
    from openai import AsyncOpenAI, Timeout

    seconds = settings.llm_timeout_seconds
    client = AsyncOpenAI(
        api_key=_key(settings),
        base_url=settings.openai_base_url or OPENAI,
        timeout=Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        # Retries are the task's, so that one failure is one call.
        max_retries=0,
    )
    return OpenAIModel(
        client,
        timeout=seconds,
        breaker=CircuitBreaker(settings.llm_breaker_failures, settings.llm_breaker_seconds),
        pace=Pace(settings.llm_calls_per_minute),
        prices=settings.llm_prices,
    )


def _key(settings: Settings) -> str:
    if settings.openai_api_key is None:
        return NO_KEY
    key = settings.openai_api_key.get_secret_value().strip()
    if not key.isascii() or not key.isprintable():
        raise SettingsError("OPENAI_API_KEY: has characters that no key has; copy it again")
    return key


def _answer(
    response: LegacyAPIResponse[ParsedChatCompletion[Answer]], schema: type[Answer]
) -> Answer:
    from openai import OpenAIError

    try:
        message = response.parse().choices[0].message
        refusal, answer = message.refusal, message.parsed
    except OpenAIError as error:
        raise failure_of(error) from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # The SDK checks the answer's content only: whatever lies around it may have any form.
        kind = type(error).__name__
        raise Malformed(f"The language model's answer has another form: {kind}.") from None
    if refusal:
        raise Refused("The language model refused to answer.")
    if not isinstance(answer, schema):
        raise Malformed("The language model's answer is empty.")
    return answer


def _report(error: LanguageModelError, purpose: str, model: str) -> None:
    metrics.LLM_CALLS.labels(purpose, error.outcome).inc()
    # While the breaker is open that was said once, when it opened.
    tell = log.debug if isinstance(error, NotCalled) else log.warning
    tell("llm_call_failed", purpose=purpose, model=model, outcome=error.outcome, error=str(error))
