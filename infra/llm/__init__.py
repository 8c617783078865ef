"""How this program calls a language model; importing this does not import the OpenAI SDK."""

from infra.llm.breaker import CircuitBreaker
from infra.llm.client import OpenAIModel, make_language_model
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

__all__ = [
    "BadAnswer",
    "BreakerOpen",
    "CircuitBreaker",
    "LanguageModel",
    "LanguageModelError",
    "Malformed",
    "OpenAIModel",
    "Overloaded",
    "Pace",
    "Parsed",
    "Refused",
    "RejectedRequest",
    "Throttled",
    "TimedOut",
    "TooManyCalls",
    "Truncated",
    "Unauthorized",
    "Unreachable",
    "make_language_model",
]
