"""What a change of the API breaks for clients of the last release, by their OpenAPI documents.

What was valid to send has to stay valid, and what is answered has to be what clients knew: a new
value of an enum in an answer breaks generated clients, a new member does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

METHODS = frozenset({"get", "put", "post", "patch", "delete"})
PROBLEM = "ProblemDetails"
# Keywords of which the wide schema has to have at most, at least, or just what the narrow one has.
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
SAME = ("pattern", "format", "contentEncoding")


@dataclass(frozen=True, order=True)
class Break:
    """Something that a client of before can't do any more: in which operation, and what."""

    operation: str
    call: str
    what: str = field(compare=False)

    def is_named_in(self, text: str) -> bool:
        """Return whether a text names the operation, by its id or as the call that it is."""
        return f"`{self.operation}`" in text or f"`{self.call}`" in text

    def __str__(self) -> str:
        return f"`{self.operation}` (`{self.call}`): {self.what}"


def unreleased(changelog: str) -> str:
    """Return what a changelog says of the release to come."""
    found = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def breaks(before: Json, after: Json) -> list[Break]:
    """Return all that breaks where the second document takes the place of the first."""
    documents = _Documents(before, after)
    found = []
    for path, methods in before["paths"].items():
        for method in METHODS & methods.keys():
            known, now = methods[method], after["paths"].get(path, {}).get(method)
            call = f"{method.upper()} {path}"
            whats = ["is gone"] if now is None else documents.operation(known, now)
            found += [Break(known["operationId"], call, what) for what in whats]
    problems = (each["components"]["schemas"][PROBLEM] for each in (before, after))
    found += [Break(PROBLEM, "problems", what) for what in documents.answered(*problems)]
    return sorted(found)


@dataclass
class _Documents:
    """Two documents, whose references are followed."""

    before: Json
    after: Json

    def operation(self, known: Json, now: Json) -> Iterator[str]:
        if known["operationId"] != now["operationId"]:
            yield f"is called `{now['operationId']}` now"
        if {} in known.get("security", [{}]) and {} not in now.get("security", [{}]):
            yield "needs a token now"
        yield from self._parameters(known, now)
        yield from self._body(known.get("requestBody"), now.get("requestBody"))
        for status, answer in known["responses"].items():
            if status.startswith("2"):
                other = now["responses"].get(status)
                yield from self._answer(status, answer, other)

    def _parameters(self, known: Json, now: Json) -> Iterator[str]:
        old, new = self._by_name(self.before, known), self._by_name(self.after, now)
        for name, parameter in old.items():
            if name not in new:
                yield f"the parameter {name} is gone"
            else:
                yield from self.sent(parameter["schema"], new[name]["schema"], name)
        for name, parameter in new.items():
            if parameter.get("required") and not old.get(name, {}).get("required"):
                yield f"the parameter {name} has to be sent now"

    def _by_name(self, document: Json, operation: Json) -> dict[str, Json]:
        found = [follow(document, each) for each in operation.get("parameters", ())]
        return {f"{each['in']} {each['name']}": each for each in found}

    def _body(self, known: Json | None, now: Json | None) -> Iterator[str]:
        if now is not None and now.get("required") and not (known or {}).get("required"):
            yield "a body has to be sent now"
        if known is None:
            return
        for media, content in known["content"].items():
            other = (now or {"content": {}})["content"].get(media)
            if other is None:
                yield f"the body can't be {media} any more"
            else:
                yield from self.sent(content["schema"], other["schema"], "the body")

    def _answer(self, status: str, known: Json, now: Json | None) -> Iterator[str]:
        if now is None:
            yield f"is not answered {status} any more"
            return
        known, now = follow(self.before, known), follow(self.after, now)
        for header in known.get("headers", {}).keys() - now.get("headers", {}).keys():
            yield f"{status} has no header {header} any more"
        for media, content in known.get("content", {}).items():
            other = now.get("content", {}).get(media)
            if other is None:
                yield f"{status} is not {media} any more"
            elif "schema" in content:
                yield from self.answered(content["schema"], other["schema"], status)

    def sent(self, known: Json, now: Json, where: str) -> Iterator[str]:
        """Yield what clients could send and may not any more."""
        comparison = _Comparison(self.after, self.before, sent=True)
        for place, what in comparison.faults(now, known, where):
            yield f"{place}: {what}"

    def answered(self, known: Json, now: Json, where: str = PROBLEM) -> Iterator[str]:
        """Yield what clients may be answered that they did not know before."""
        comparison = _Comparison(self.before, self.after, sent=False)
        for place, what in comparison.faults(known, now, where):
            yield f"{place}: {what}"


Fault = tuple[str, str]


@dataclass
class _Comparison:
    """Whether a schema of one document admits all that one of the other document does."""

    of_wide: Json
    of_narrow: Json
    sent: bool
    seen: set[tuple[str, str]] = field(default_factory=set)

    def faults(self, wide: Json, narrow: Json, at: str) -> Iterator[Fault]:
        """Yield what of the narrow schema the wide one does not admit, and where."""
        pair = str(wide.get("$ref", "")), str(narrow.get("$ref", ""))
        if all(pair):
            if pair in self.seen:
                return
            self.seen.add(pair)
        wide, narrow = follow(self.of_wide, wide), follow(self.of_narrow, narrow)
        if "anyOf" in wide or "anyOf" in narrow:
            yield from self._kinds(kinds(wide), kinds(narrow), at)
            return
        yield from self._values(wide, narrow, at)
        yield from self._limits(wide, narrow, at)
        yield from self._members(wide, narrow, at)
        for keyword, inner in (("items", f"{at}[]"), ("additionalProperties", f"{at}.*")):
            if isinstance(wide.get(keyword), dict):
                other = narrow.get(keyword)
                given = other if isinstance(other, dict) else {}
                yield from self.faults(wide[keyword], given, inner)

    def _kinds(self, wide: list[Json], narrow: list[Json], at: str) -> Iterator[Fault]:
        for kind in narrow:
            tried = [list(self.faults(each, kind, at)) for each in wide]
            if all(tried):
                # The one that comes closest says what is wrong.
                yield from min(tried, key=len)

    def _values(self, wide: Json, narrow: Json, at: str) -> Iterator[Fault]:
        allowed, types = _types(wide), _types(narrow)
        if allowed and (not types or types - allowed - ({"integer"} & _integers(allowed))):
            yield at, f"{self._verb} {_told(types)}, not {_told(allowed)}"
        values, others = _enum(wide), _enum(narrow)
        if values is not None:
            lacking = None if others is None else [each for each in others if each not in values]
            if lacking is None:
                yield at, f"{self._verb} any value, not only {values}"
            elif lacking:
                yield at, f"{self._verb} {', '.join(map(str, lacking))}"

    def _limits(self, wide: Json, narrow: Json, at: str) -> Iterator[Fault]:
        for keyword in (*LOWER, *UPPER, *SAME):
            limit, other = wide.get(keyword), narrow.get(keyword)
            if limit is None or limit == other:
                continue
            lower, upper = keyword in LOWER, keyword in UPPER
            within = (lower and other is not None and other >= limit) or (
                upper and other is not None and other <= limit
            )
            if not within:
                yield at, f"{keyword} {self._was} {other}, {self._is} {limit}"

    def _members(self, wide: Json, narrow: Json, at: str) -> Iterator[Fault]:
        ours, theirs = wide.get("properties", {}), narrow.get("properties", {})
        for name in ours.keys() & theirs.keys():
            yield from self.faults(ours[name], theirs[name], f"{at}.{name}")
        gone = theirs.keys() - ours.keys() if self.sent else ours.keys() - theirs.keys()
        for name in sorted(gone):
            yield f"{at}.{name}", "is gone"
        for name in sorted({*wide.get("required", ())} - {*narrow.get("required", ())} - gone):
            yield f"{at}.{name}", "has to be sent now" if self.sent else "may be missing now"

    @property
    def _verb(self) -> str:
        return "can't be any more:" if self.sent else "may be now:"

    @property
    def _was(self) -> str:
        return "was" if self.sent else "is"

    @property
    def _is(self) -> str:
        return "is" if self.sent else "was"


def follow(document: Json, schema: Json) -> Json:
    """Return what a reference leads to, or the schema itself."""
    while (reference := schema.get("$ref")) is not None:
        found: Any = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema


def kinds(schema: Json) -> list[Json]:
    """Return the schemas of which a value has to meet one."""
    return list(schema["anyOf"]) if "anyOf" in schema else [schema]


def _types(schema: Json) -> set[str]:
    found = schema.get("type", [])
    return {found} if isinstance(found, str) else set(found)


def _integers(types: set[str]) -> set[str]:
    """Return what integers are admitted as."""
    return {"integer"} if "number" in types else set()


def _enum(schema: Json) -> list[Any] | None:
    found: list[Any] | None = schema.get("enum")
    return [schema["const"]] if "const" in schema else found


def _told(types: set[str]) -> str:
    return " or ".join(sorted(types)) or "anything"
