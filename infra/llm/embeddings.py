"""Embeddings: the meanings of texts as directions, by a model behind the OpenAI API."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from math import hypot, isfinite
from typing import TYPE_CHECKING, Protocol

from infra.llm.errors import Malformed
from infra.llm.provider import Provider, make_provider
from infra.settings.adapters import EmbeddingSettings, LanguageModelSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse
    from openai.types import CreateEmbeddingResponse

PURPOSE = "embed"
# Of one call. The API takes 2,048 texts and 300,000 tokens; a character has up to four bytes, and
# a token has at least one.
MAX_TEXTS = 64
MAX_CHARACTERS = 64_000


class Embedder(Protocol):
    """Whatever places texts in a space of `dimensions`; to be used from one event loop."""

    @property
    def model(self) -> str:
        """Its name: vectors of two models can't be compared."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of each list that `embed` gives."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector of length 1 for each text, in their order; none of them may be empty.

        All or nothing: raises LanguageModelError when one can't be had.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class OpenAIEmbedder:
    """The embeddings of a provider; as many calls as the texts need, one after another."""

    def __init__(self, provider: Provider, model: str, dimensions: int) -> None:
        self._provider = provider
        self._model = model
        self._dimensions = dimensions

    @property
    def model(self) -> str:
        return self._model

    @property
    def dimensions(self) -> int:
        return self._dimensions

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """As the port has it."""
        found: list[list[float]] = []
        for batch in batches(texts):
            found += await self._call(batch)
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        await self._provider.aclose()

    async def _call(self, texts: list[str]) -> list[list[float]]:
        def send(client: AsyncOpenAI) -> Awaitable[LegacyAPIResponse[CreateEmbeddingResponse]]:
            # Without a format the SDK asks for base64, and reads whichever it gets.
            return client.embeddings.with_raw_response.create(
                input=texts, model=self._model, dimensions=self._dimensions
            )

        vectors, _ = await self._provider.ask(
            send,
            lambda response: _vectors(response, len(texts), self._dimensions),
            model=self._model,
            purpose=PURPOSE,
        )
        return vectors


def make_embedder(settings: EmbeddingSettings, llm: LanguageModelSettings) -> Embedder | None:
    """Return the configured embedder, or None without EMBEDDING_MODEL, or without a key and a URL.

    Raise SettingsError for a key that can't be sent.
    """
    if settings.model is None:
        return None
    provider = make_provider(llm)
    if provider is None:
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
    by_index = {each.index: each.embedding for each in data}
    if len(data) != count or by_index.keys() != set(range(count)):
        raise Malformed(f"The embedding model did not answer with one vector for {count} texts.")
    return [_unit(by_index[index], dimensions) for index in range(count)]


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
