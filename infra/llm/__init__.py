"""How this program calls a language model; importing this does not import the OpenAI SDK."""

from infra.llm.client import OpenAIModel, make_language_model
from infra.llm.embeddings import Embedder, OpenAIEmbedder, make_embedder
from infra.llm.errors import (
    BadAnswer,
    BreakerOpen,
    LanguageModelError,
    Malformed,
    Overloaded,
    Refused,
    RejectedRequest,
    Throttled,
    TimedOut,
    TooManyCalls,
    Truncated,
    Unauthorized,
    Unreachable,
)
from infra.llm.pace import Pace
from infra.llm.port import LanguageModel, Parsed
from infra.llm.provider import LanguageModelBreaker, Provider, make_provider

__all__ = [
    "BadAnswer",
    "BreakerOpen",
    "Embedder",
    "LanguageModel",
    "LanguageModelBreaker",
    "LanguageModelError",
    "Malformed",
    "OpenAIEmbedder",
    "OpenAIModel",
    "Overloaded",
    "Pace",
    "Parsed",
    "Provider",
    "Refused",
    "RejectedRequest",
    "Throttled",
    "TimedOut",
    "TooManyCalls",
    "Truncated",
    "Unauthorized",
    "Unreachable",
    "make_embedder",
    "make_language_model",
    "make_provider",
]
