"""A language model as the rest of the program sees it: text in, a checked object out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel

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
        """The answer of `model` to `user` under the instructions `system`, as a `schema`.

        One call, never repeated by itself. `purpose` is what metrics count it under. Raises
        LanguageModelError.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
