"""The console's page Now, in a real browser."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.e2e.pages import axe, fits, visitor
from tests.e2e.program import Program


def test_it_shows_what_runs(server: Program, browser: Browser) -> None:
    with visitor(browser, server, "olga", ["auditor"]) as page:
        page.goto("/console")
        expect(page.get_by_role("heading", name="Now")).to_be_visible()
        assert axe(page) == []
        fits(page)
