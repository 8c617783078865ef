"""The port of language models, which answer in a given form, and the OpenAI SDK behind it."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pydantic import BaseModel

from infra.llm.errors import Malformed, Refused
from infra.llm.provider import Provider, make_provider
from infra.settings.adapters import LanguageModelSettings

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

        One call, never repeated by itself. `purpose` is what metrics count it under. Raises
        LanguageModelError.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai._legacy_response import LegacyAPIResponse
    from openai.types.chat import ParsedChatCompletion


class OpenAIModel:
    """The chat completions of a provider."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

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

        answer, usage = await self._provider.ask(
            send, lambda response: _answer(response, schema), model=model, purpose=purpose
        )
        return Parsed(answer, model, usage.input_tokens, usage.output_tokens)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._provider.aclose()


def make_language_model(settings: LanguageModelSettings) -> LanguageModel | None:
    """Return the configured model, or None where there is neither a key nor a URL.

    Raise SettingsError for a key that can't be sent.
    """
    provider = make_provider(settings)
    return None if provider is None else OpenAIModel(provider)


def _answer(
    response: LegacyAPIResponse[ParsedChatCompletion[Answer]], schema: type[Answer]
) -> Answer:
    message = response.parse().choices[0].message
    refusal, answer = message.refusal, message.parsed
    if refusal:
        raise Refused("The language model refused to answer.")
    if not isinstance(answer, schema):
        raise Malformed("The language model's answer is empty.")
    return answer
