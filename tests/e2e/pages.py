"""Somebody at the pages, in a real browser: logs in as people do, and says what went wrong there.

with visitor(browser, server, "olga", roles=["admin"]) as page:
    page.goto("/console")
    axe(page)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS, unavailable

# In milliseconds, as Playwright has it.
DEADLINE = 1000 * DEADLINE_SECONDS
XSS = """<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script>"""
"""A text that a page must show as it is: where it is not escaped, a script runs, or asks for x."""
PHONE = {"width": 390, "height": 844}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
AXE = "axe-playwright-python is not installed: pip install -r requirements-dev.txt"


@contextmanager
def visitor(
    browser: Browser,
    server: Program,
    user: str | None = None,
    roles: Sequence[str] = (),
    *,
    phone: bool = False,
    origins: Sequence[str] = (),
    refused: Sequence[int] = (),
) -> Iterator[Page]:
    """A page of somebody who logged in by a token; None is somebody without one.

    At its end no script may have complained, no text have become a script, and no request have
    left the program's origin and `origins`. `refused` are the statuses that a test asks for on
    purpose: browsers tell of them in the console too.
    """
    options: dict[str, Any] = {"viewport": PHONE} if phone else {}
    context = browser.new_context(base_url=server.url, **options)
    context.set_default_timeout(DEADLINE)
    expect.set_options(timeout=DEADLINE)
    seen = _Seen({urlsplit(origin).netloc for origin in (server.url, *origins)}, refused)
    try:
        context.on("request", seen.request)
        context.on("console", seen.console)
        context.on("weberror", lambda error: seen.complaints.append(str(error.error)))
        page = context.new_page()
        if user is not None:
            log_in(page, server.token(user, roles=roles))
        yield page
        assert page.title() != "hacked"
        assert seen.complaints == []
        assert seen.abroad == []
    finally:
        context.close()


def log_in(page: Page, token: str, wanted: str = "/login") -> None:
    """Send the form of the login with a token; the browser is led to `wanted` then."""
    page.goto(f"/login?next={wanted}")
    page.get_by_label("Token").fill(token)
    page.get_by_role("main").get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


def axe(page: Page) -> list[str]:
    """Return what axe finds that is serious, in light and in dark."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ModuleNotFoundError:
        unavailable(AXE)
    serious: list[str] = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page).response["violations"]
        serious += [
            f"{scheme}: {each['id']}: {each['help']}: {node['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
    page.emulate_media(color_scheme="light")
    return serious


def fits(page: Page) -> None:
    """Assert that the page needs no scrolling from side to side."""
    wide, window = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window, f"{page.url} is {wide} px wide in a window of {window} px"


def accept_questions(page: Page, answer: bool = True) -> None:
    """Say yes, or no, to whatever the page asks before it acts."""
    page.on("dialog", lambda dialog: dialog.accept() if answer else dialog.dismiss())


class _Seen:
    """What a browser did that a page should not make it do."""

    def __init__(self, own: set[str], refused: Sequence[int]) -> None:
        self._own = own
        self._refused = refused
        self.complaints: list[str] = []
        self.abroad: list[str] = []

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc not in self._own:
            self.abroad.append(request.url)

    def console(self, message: ConsoleMessage) -> None:
        # Browsers write: Failed to load resource: the server responded with a status of 403 (…)
        # And htmx: Response Status Error Code 403 from …
        wanted = any(
            f"status of {status} " in message.text or f"Error Code {status} " in message.text
            for status in self._refused
        )
        if message.type in ("error", "warning") and not wanted:
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")
