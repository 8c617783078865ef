"""In which language a comment is written: one port, and a detector for each taste."""

from __future__ import annotations

from infra.language.choosing import NoDetector, make_detector
from infra.language.llm import LlmDetector
from infra.language.port import Detection, Detector
from infra.language.text import TextDetector

__all__ = [
    "Detection",
    "Detector",
    "LlmDetector",
    "NoDetector",
    "TextDetector",
    "make_detector",
]
