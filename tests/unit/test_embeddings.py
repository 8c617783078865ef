"""Which texts one call for embeddings takes."""

from __future__ import annotations

import pytest

from infra.llm.client import MAX_CHARACTERS, MAX_TEXTS, batches, make_embedder
from infra.llm.limits import Usage, usage_of
from infra.settings import load_settings


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([1] * MAX_TEXTS, [MAX_TEXTS]),
        ([1] * (2 * MAX_TEXTS + 1), [MAX_TEXTS, MAX_TEXTS, 1]),
        ([MAX_CHARACTERS - 1, 1], [2]),
        ([MAX_CHARACTERS, 1], [1, 1]),
        ([1, 2 * MAX_CHARACTERS, 1], [1, 1, 1]),
    ],
)
def test_a_call_is_bounded_in_texts_and_characters(lengths: list[int], expected: list[int]) -> None:
    texts = [chr(97 + at % 26) * length for at, length in enumerate(lengths)]
    found = list(batches(texts))
    assert [len(batch) for batch in found] == expected
    assert [text for batch in found for text in batch] == texts


@pytest.mark.parametrize("given", [{}, {"EMBEDDING_MODEL": "places"}, {"OPENAI_API_KEY": "sk-1"}])
def test_it_takes_a_model_and_a_provider(given: dict[str, str]) -> None:
    settings = load_settings(given)
    assert make_embedder(settings.embeddings, settings.llm) is None


def test_tokens_of_embeddings_are_input() -> None:
    assert usage_of(b'{"usage": {"prompt_tokens": 8, "total_tokens": 8}}') == Usage(8, 0)
