"""The ports of language models, and the OpenAI SDK behind them.

One answers in a given form; another places texts in a space, where directions are meanings.

Each call is paced, bounded in time and counted; a circuit breaker leaves the provider alone while
it fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import hypot, isfinite
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import structlog
from pydantic import BaseModel

from infra.circuit_breaker import CircuitBreaker, CircuitState
from infra.llm.errors import (
    BreakerOpen,
    LanguageModelError,
    Malformed,
    NotCalled,
    Refused,
    TimedOut,
    failure_of,
)
from infra.llm.limits import LLM_CALLS, Budget, Pace, Usage, count_usage, usage_of
from infra.llm.spending import LEDGER, Spent
from infra.metrics import SECONDS, gauge, histogram
from infra.settings import SettingsError
from infra.settings.adapters import EmbeddingSettings, LanguageModelSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse
    from openai.types import CreateEmbeddingResponse
    from openai.types.chat import ParsedChatCompletion
    from redis.asyncio import Redis

log = structlog.get_logger(__name__)

OPENAI = "https://api.openai.com/v1"
CONNECT_SECONDS = 5.0
# Of one call for embeddings. The API takes 2,048 texts and 300,000 tokens; a character has up to
# four bytes, and a token has at least one.
MAX_TEXTS = 64
MAX_CHARACTERS = 64_000
# A server of one's own may need no key, but the SDK does.
NO_KEY = "none"

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


class LanguageModelBreaker(CircuitBreaker):
    """Opens after `failures` of the provider in a row, for `seconds`, or longer if it says so.

    An answer that can't be used is no failure of the provider.
    """

    service = "llm"

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
        spent = Spent(1)
        try:
            self.breaker.check()
            await self.pace.turn(self.timeout)
            with self.breaker.attempt(), LLM_SECONDS.labels(purpose).time():
                response = await self._sent(send)
                usage = usage_of(response.content)
                spent = count_usage(usage, model, self.prices.get(model))
                content = _checked(read, response)
        except LanguageModelError as error:
            LLM_CALLS.labels(purpose, error.outcome).inc()
            if not isinstance(error, NotCalled):
                spent.failed = 1
                LEDGER.add(purpose, model, spent)
            # While the breaker is open that was said once, when it opened.
            tell = log.debug if isinstance(error, NotCalled) else log.warning
            told = {"outcome": error.outcome, "error": str(error)}
            tell("llm_call_failed", purpose=purpose, model=model, **told)
            raise
        LLM_CALLS.labels(purpose, "answered").inc()
        LEDGER.add(purpose, model, spent)
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


class Embedder(Protocol):
    """Whatever places texts in a space of `dimensions`; to be used from one event loop."""

    @property
    def model(self) -> str:
        """Its name: vectors of two models can't be compared."""

    @property
    def dimensions(self) -> int:
        """The length of each list that `embed` gives."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector of length 1 for each text, in their order; none of them may be empty.

        All or nothing: raise LanguageModelError when one can't be had.
        """

    async def aclose(self) -> None:
        """Close the connections."""


class OpenAIEmbedder:
    """The embeddings of a provider; as many calls as the texts need, one after another."""

    def __init__(self, provider: Provider, model: str, dimensions: int) -> None:
        self._provider = provider
        self.model, self.dimensions = model, dimensions
        self.aclose = provider.aclose

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """As the port has it."""
        return [vector for batch in batches(texts) for vector in await self._call(batch)]

    async def _call(self, texts: list[str]) -> list[list[float]]:
        def send(client: AsyncOpenAI) -> Awaitable[LegacyAPIResponse[CreateEmbeddingResponse]]:
            # Without a format the SDK asks for base64, and reads whichever it gets.
            return client.embeddings.with_raw_response.create(
                input=texts, model=self.model, dimensions=self.dimensions
            )

        def read(response: LegacyAPIResponse[CreateEmbeddingResponse]) -> list[list[float]]:
            return _vectors(response, len(texts), self.dimensions)

        vectors, _ = await self._provider.ask(send, read, model=self.model, purpose="embed")
        return vectors


def make_embedder(
    settings: EmbeddingSettings, llm: LanguageModelSettings, redis: Redis | None = None
) -> Embedder | None:
    """Return the configured embedder, or None without EMBEDDING_MODEL, or without a key and a URL.

    With a Redis it keeps to the pace of all processes together. Raise SettingsError for a key that
    can't be sent.
    """
    if settings.model is None or (provider := make_provider(llm, redis)) is None:
        return None
    return OpenAIEmbedder(provider, settings.model, settings.dimensions)


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in order, as many at once as one call takes; a longer text goes alone."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == MAX_TEXTS or characters + len(text) > MAX_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _vectors(
    response: LegacyAPIResponse[CreateEmbeddingResponse], count: int, dimensions: int
) -> list[list[float]]:
    data = response.parse().data
    if sorted(each.index for each in data) != list(range(count)):
        raise Malformed(f"The embedding model did not answer with one vector for {count} texts.")
    by_index = sorted(data, key=lambda each: each.index)
    return [_unit(each.embedding, dimensions) for each in by_index]


def _unit(vector: Sequence[float], dimensions: int) -> list[float]:
    """Return the vector with length 1: only its direction means something."""
    if len(vector) != dimensions:
        raise Malformed(
            f"The embedding model's vectors have {len(vector)} dimensions, not the {dimensions} of "
            "EMBEDDING_DIMENSIONS."
        )
    length = hypot(*vector)
    if not isfinite(length) or length == 0:
        raise Malformed("The embedding model answered with a vector that has no direction.")
    return [number / length for number in vector]
