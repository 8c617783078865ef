"""Embeddings: the meanings of texts as directions, by a model behind the OpenAI API."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from math import hypot, isfinite
from typing import TYPE_CHECKING, Protocol

from infra.llm.client import Provider, make_provider
from infra.llm.errors import Malformed
from infra.settings.adapters import EmbeddingSettings, LanguageModelSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse
    from openai.types import CreateEmbeddingResponse
    from redis.asyncio import Redis

# Of one call. The API takes 2,048 texts and 300,000 tokens; a character has up to four bytes, and
# a token has at least one.
MAX_TEXTS = 64
MAX_CHARACTERS = 64_000


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
