"""What people read fits their terminal, and nothing of it is cut."""

from __future__ import annotations

import os
import pty
import sys
import termios
from io import StringIO

import pytest

from backlot.output import MAX_VALUE, UNLIMITED, change_lines, excerpts, flow, table, width

HEADINGS = ("projection", "status", "position", "replay")
ROWS = [
    ("likes", "running", 1000, "-"),
    ("comments", "stopped", 12, "switch building at 400/1000, 50 positions/s, 12 s left"),
]
UUID = "5f0c2f0a-0000-4000-8000-000000000001"


def test_a_table_has_its_numbers_to_the_right() -> None:
    assert list(table(HEADINGS, ROWS, UNLIMITED)) == [
        "projection  status   position  replay",
        "likes       running      1000  -",
        "comments    stopped        12  switch building at 400/1000, 50 positions/s, 12 s left",
    ]


def test_a_last_column_that_is_too_wide_is_broken_between_words() -> None:
    lines = list(table(HEADINGS, ROWS, 60))
    assert lines[2:] == [
        "comments    stopped        12  switch building at 400/1000,",
        "                               50 positions/s, 12 s left",
    ]


def test_without_room_a_row_is_a_block_of_lines() -> None:
    assert list(table(HEADINGS, ROWS, 40)) == [
        "projection  likes",
        "status      running",
        "position    1000",
        "replay      -",
        "",
        "projection  comments",
        "status      stopped",
        "position    12",
        "replay      switch building at 400/1000,",
        "            50 positions/s, 12 s left",
    ]


def test_an_id_stays_whole_so_that_it_can_be_copied() -> None:
    assert list(table(("id", "what"), [("1", UUID)], 30)) == ["id    1", f"what  {UUID}"]
    assert list(flow(("comment.posted", UUID), 40)) == ["comment.posted", f"  {UUID}"]
    assert list(flow((UUID,), 10)) == [UUID]


@pytest.mark.parametrize("columns", [20, 40, 80, UNLIMITED])
def test_nothing_is_cut_at_any_width(columns: int) -> None:
    rows = [("a" * 30, "b c d " * 20, "日本語のタイトル", UUID, "why " * 50)]
    shown = " ".join(table(("one", "two", "three", "four", "five"), rows, columns))
    flowed = " ".join(flow([cell.strip() for cell in rows[0]], columns))
    for text in (shown, flowed):
        for cell in rows[0]:
            assert " ".join(cell.split()) in " ".join(text.split())


def test_a_table_without_rows_has_its_headings() -> None:
    assert list(table(("queue", "dead"), [], 80)) == ["queue  dead"]


def test_a_cell_orders_the_terminal_about_in_no_way() -> None:
    (_, line) = table(("error",), [("broke\n\x1b]0;owned\x07 here",)], 80)
    assert line.isprintable()
    assert line.endswith("here")


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "__stdout__", pipe)
        assert width() == UNLIMITED


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_has_its_own(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = pty.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        termios.tcsetwinsize(theirs, (24, columns))
        monkeypatch.setattr(sys, "__stdout__", terminal)
        assert width() == columns


@pytest.mark.parametrize(("told", "columns"), [("40", 40), ("0", UNLIMITED), ("wide", UNLIMITED)])
def test_what_columns_says_counts_first(
    monkeypatch: pytest.MonkeyPatch, told: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", told)
    monkeypatch.setattr(sys, "__stdout__", StringIO())
    assert width() == columns


class TestChange:
    def test_a_short_value_stands_beside_what_it_became(self) -> None:
        assert list(change_lines("  likes", 77, 3, 80)) == ["  likes: 77 → 3"]
        assert list(change_lines("  note", None, "", 80)) == ['  note: null → ""']

    def test_of_a_long_text_the_part_that_changed_is_shown(self) -> None:
        before, after = "a" * 500 + "old" + "z" * 500, "a" * 500 + "new" + "z" * 500
        around = ("…" + "a" * 20, "z" * 20 + "…")
        assert list(change_lines("  content", before, after, 80)) == [
            "  content:",
            f'    - "{around[0]}old{around[1]}"',
            f'    + "{around[0]}new{around[1]}"',
        ]

    @pytest.mark.parametrize(
        ("old", "new", "shown"),
        [
            ("same beginning", "same ending", ("same beginning", "same ending")),
            ("aaa", "aaaa", ("aaa", "aaaa")),
            ("x" * 100, "x" * 101, ("…" + "x" * 20, "…" + "x" * 21)),
            ("", "x" * 100, ("", "x" * 100)),
            ("y" + "x" * 99, "x" * 99, ("y" + "x" * 20 + "…", "x" * 20 + "…")),
        ],
    )
    def test_what_is_alike_is_left_out(self, old: str, new: str, shown: tuple[str, str]) -> None:
        assert excerpts(old, new) == shown

    def test_values_that_do_not_fit_side_by_side_stand_below_each_other(self) -> None:
        assert list(change_lines("  title", "A first film", "Another film", 30)) == [
            "  title:",
            '    - "A first film"',
            '    + "Another film"',
        ]

    def test_what_is_left_out_of_a_very_long_value_is_counted(self) -> None:
        *_, after = change_lines("  transcript", None, "word " * 1_000, UNLIMITED)
        assert after.endswith(f"… ({5_002 - MAX_VALUE:,} more characters)")

    def test_it_orders_the_terminal_about_in_no_way(self) -> None:
        lines = change_lines("x", "\x9b31m", "\u202e", 80)
        assert all(line.isprintable() for line in lines)
