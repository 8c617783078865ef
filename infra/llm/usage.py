"""What calls of a language model take: tokens, and what those cost."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from infra.metrics import counter

MILLION = 1_000_000

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


class Usage(NamedTuple):
    """Tokens of one call; 0 where the provider did not say."""

    input_tokens: int
    output_tokens: int


def usage_of(body: bytes) -> Usage:
    """What a response says that it took, whether its answer can be used or not."""
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
