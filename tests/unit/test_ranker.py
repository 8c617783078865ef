"""A language model's order is believed as far as it can be checked, and waited for in bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.client import Answer, Parsed
from infra.llm.errors import Overloaded, TimedOut
from projections.recommendations.model import Material
from projections.recommendations.prompt import MOST_PICKS, SYSTEM, answer_form
from projections.recommendations.ranker import (
    TOKENS_OF_FORM,
    TOKENS_PER_PICK,
    NothingUsable,
    RankedByModel,
    Ranker,
)
from tests.ranking_material import films, material_of

pytestmark = pytest.mark.anyio

MODEL = "some-model"
FILMS = films(8)
MATERIAL = material_of(FILMS, films(3, "Seen"))
REASON = "You watched films of this kind"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Model:
    """Answers with these picks once `ready` is set; keeps what it was asked."""

    def __init__(self, *picks: tuple[str, str], is_ready: bool = True) -> None:
        self.picks: Sequence[tuple[str, str]] = picks
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        self.limits: list[int] = []
        self.ended = 0
        self.closed = False
        self.ready = asyncio.Event()
        if is_ready:
            self.ready.set()

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
        assert (system, model, purpose) == (SYSTEM, MODEL, "recommend")
        self.asked.append(json.loads(user))
        assert issubclass(schema, answer_form(len(self.asked[-1]["candidates"])))
        self.limits.append(max_output_tokens)
        await self.ready.wait()
        self.ended += 1
        if self.error is not None:
            raise self.error
        picks = [{"id": name, "reason": reason} for name, reason in self.picks]
        answer: BaseModel = schema.model_validate({"picks": picks})
        return Parsed(cast("Answer", answer), model, 1, 1)

    async def aclose(self) -> None:
        self.closed = True


async def rank(
    model: Model, limit: int = 5, material: Material = MATERIAL, seconds: float | None = None
) -> list[RankedByModel]:
    return await Ranker(model, MODEL).rank(material, limit, seconds)


def film(number: int, reason: str | None = REASON) -> RankedByModel:
    return RankedByModel(FILMS[number - 1].video_id, reason)


def counted(outcome: str) -> float:
    return metrics.value("backlot_recommendation_picks_total", outcome=outcome)


async def test_an_order_is_that_of_the_model() -> None:
    model = Model(("c3", REASON), ("c1", f" {REASON} "), ("c8", REASON))
    with capture_logs() as logs:
        assert await rank(model) == [film(3), film(1), film(8)]
    assert logs == []
    assert model.asked[0]["limit"] == 5
    assert model.limits == [TOKENS_OF_FORM + 5 * TOKENS_PER_PICK]


async def test_what_is_wrong_in_an_answer_is_dropped_and_counted() -> None:
    outcomes = ("kept", "unknown", "duplicate", "surplus", "reason_dropped")
    before = [counted(outcome) for outcome in outcomes]
    model = Model(
        ("c9", REASON), ("c2", "See https://evil.example"), ("w1", REASON), ("c2", REASON),
        ("", REASON), ("C3", REASON), ("c1", REASON), (str(FILMS[3].video_id), REASON),
        ("c5", REASON), ("c99", REASON),
    )  # fmt: skip
    with capture_logs() as logs:
        assert await rank(model, limit=2) == [film(2, None), film(1)]
    after = [counted(outcome) for outcome in outcomes]
    changes = [new - old for new, old in zip(after, before, strict=True)]
    assert changes == [2, 6, 1, 1, 1]
    (line,) = logs
    assert "evil" not in str(line), "what a model says is a stranger's word"


@pytest.mark.parametrize("picks", [(), (("c0", REASON), ("w1", REASON), ("video", REASON))])
async def test_an_answer_without_a_candidate_is_none(picks: Sequence[tuple[str, str]]) -> None:
    with pytest.raises(NothingUsable):
        await rank(Model(*picks))


async def test_where_nothing_is_known_nobody_is_asked() -> None:
    model = Model(("c1", REASON))
    material = material_of(FILMS)
    material.described.clear()
    assert await rank(model, material=material) == []
    assert await rank(model, material=material_of([])) == []
    assert model.asked == []


async def test_more_are_not_taken_than_a_model_can_name_in_time() -> None:
    videos = films(60)
    model = Model(*((f"c{number}", REASON) for number in range(1, 61)))
    assert len(await rank(model, 50, material_of(videos))) == MOST_PICKS


async def test_a_failure_of_the_call_is_that_of_the_ranking() -> None:
    model = Model()
    model.error = Overloaded("500")
    with pytest.raises(Overloaded):
        await rank(model)


async def settle() -> None:
    """Let all go on that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nobody_waits_longer_than_they_have_time() -> None:
    model = Model(("c1", REASON), is_ready=False)
    ranker = Ranker(model, MODEL)
    with pytest.raises(TimedOut):
        await ranker.rank(MATERIAL, 5, 0.05)
    assert model.ended == 0
    model.ready.set()
    await settle()
    assert model.ended == 1, "the provider's slowness has to be seen to its end"
    with pytest.raises(TimedOut):
        await ranker.rank(MATERIAL, 5, 0.0)
    await settle()
    assert len(model.asked) == 1, "without time nothing is asked"


async def test_a_call_is_not_given_up_with_whoever_waits() -> None:
    model = Model(("c1", REASON), is_ready=False)
    ranker = Ranker(model, MODEL)
    waiting = asyncio.create_task(ranker.rank(MATERIAL, 5, 60.0))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    model.ready.set()
    await settle()
    assert model.ended == 1


async def test_closing_ends_what_is_on_its_way() -> None:
    model = Model(("c1", REASON), is_ready=False)
    ranker = Ranker(model, MODEL)
    with pytest.raises(TimedOut):
        await ranker.rank(MATERIAL, 5, 0.05)
    await ranker.aclose()
    model.ready.set()
    await settle()
    assert (model.ended, model.closed) == (0, True)


@pytest.mark.parametrize(("error", "logged"), [(Overloaded("500"), 0), (KeyError("bug"), 1)])
async def test_a_late_failure_that_nobody_told_of_is_logged(error: Exception, logged: int) -> None:
    model = Model(is_ready=False)
    model.error = error
    with capture_logs() as logs:
        with pytest.raises(TimedOut):
            await rank(model, seconds=0.05)
        model.ready.set()
        await settle()
    assert [line["event"] for line in logs] == logged * ["recommendation_call_broke"]
