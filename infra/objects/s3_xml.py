"""Answers in the XML of S3, for clients of S3 that are sent here for what is not moving bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self
from xml.etree.ElementTree import Element, SubElement, tostring

from fastapi import Response

MEDIA_TYPE = "application/xml"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

Field = tuple[str, "str | int | Iterable[Field]"]
"""An element's name and its text, or the elements in it."""


class S3Response(Response):
    """An answer in XML."""

    media_type = MEDIA_TYPE

    @classmethod
    def of(
        cls, name: str, fields: Iterable[Field], headers: Mapping[str, str] | None = None
    ) -> Self:
        """Return the answer that is one element of this name, with these fields in it."""
        root = Element(name, xmlns=NAMESPACE)
        _fill(root, fields)
        return cls(tostring(root, "utf-8", xml_declaration=True), headers=headers)


def documented(about: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of an answer in XML."""
    return {200: {"description": about, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}}


def _fill(element: Element, fields: Iterable[Field]) -> None:
    for name, value in fields:
        inner = SubElement(element, name)
        if isinstance(value, str | int):
            inner.text = str(value)
        else:
            _fill(inner, value)
