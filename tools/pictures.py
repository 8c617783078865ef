"""Pictures of the console, the studio and the site for the README, of a demo on its own server.

`make pictures` takes them again: docs/pictures/*.webp, in a light theme, each of 200 KB at most.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from backlot.demo.client import ServerNotStarted, running_server
from infra.http.auth import mint_token
from infra.settings import load_settings

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, HEIGHT = 1280, 800
MOST_BYTES = 200_000
LIVE_ANSWERS = 15
QUALITIES = range(90, 20, -10)
HOLD = """
film => new Promise(held => {
  film.ontimeupdate = () => { if (film.currentTime > 1.2) { film.pause(); held(); } };
})
"""
# The owner is who uploads in the demo; to the viewer, who is not in it, all of it is new.
OWNER, VIEWER, OPERATOR = "studio", "maya", "operator"


@dataclass(frozen=True)
class Picture:
    """A page as somebody sees it; `{video}` in its path is a video of the demo."""

    name: str
    path: str
    user: str
    roles: tuple[str, ...] = ()
    prepare: Callable[[Page], object] = lambda page: None


def play(page: Page) -> None:
    """Have the film play, and hold it where something is to be seen; the rest is there by then."""
    page.wait_for_selector(".next .film")
    page.wait_for_selector("[data-live-state]:text-is('live')")
    page.get_by_role("button", name="Play").click()
    page.locator("video").evaluate(HOLD)


def over_time(page: Page) -> None:
    """Show how the film did, below what it is at the moment."""
    page.get_by_role("heading", name="Over time").evaluate("heading => heading.scrollIntoView()")


def a_while(page: Page) -> None:
    """Let the lines of what runs have some points."""
    for _ in range(LIVE_ANSWERS):
        page.wait_for_event("response", lambda answer: "/now/live" in answer.url)


ALL = (
    Picture("site", "/watch/{video}", VIEWER, prepare=play),
    Picture("studio", "/studio/videos/{video}", OWNER, prepare=over_time),
    Picture("console", "/console", OPERATOR, ("admin",), a_while),
)


@contextmanager
def demonstrated() -> Iterator[tuple[str, str]]:
    """Run a server on which the demo was played; yield its URL and the secret of its tokens."""
    with tempfile.TemporaryDirectory(prefix="backlot-pictures-") as folder:
        secret = secrets.token_urlsafe(32)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        own = {
            "BACKLOT_DATA_DIR": str(Path(folder, "data")),
            "BACKLOT_PORT": port,
            "JWT_SECRET": secret,
            "RATE_LIMITS": "off",
        }
        os.environ.update(own)
        with running_server(load_settings()) as settings:
            url = settings.server.local_url
            subprocess.run([sys.executable, "-m", "backlot", "demo", "--url", url], check=True)
            yield url, secret


def take(browser: Browser, url: str, secret: str, video: str, picture: Picture) -> bytes:
    """Return a picture of a page, as WebP."""
    with browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        base_url=url,
        color_scheme="light",
        reduced_motion="reduce",
        locale="en-US",
    ) as context:
        page = context.new_page()
        page.goto(f"/login?next={picture.path.format(video=video)}")
        page.get_by_label("Token").fill(mint_token(secret, picture.user, picture.roles))
        page.get_by_role("button", name="Log in").click()
        page.wait_for_selector("h1")
        picture.prepare(page)
        # What a page asks for once it is there has come, and nothing has the focus.
        page.locator(".htmx-request").first.wait_for(state="detached")
        page.evaluate("document.activeElement.blur()")
        return shot(page)


def shot(page: Page) -> bytes:
    """Return what is seen of a page, in the best quality that is small enough."""
    session = page.context.new_cdp_session(page)
    for quality in QUALITIES:
        told = session.send("Page.captureScreenshot", {"format": "webp", "quality": quality})
        picture = b64decode(told["data"])
        if len(picture) <= MOST_BYTES:
            return picture
    raise SystemExit(f"no picture of {page.url} is below {MOST_BYTES:,} bytes")


def first_video(url: str) -> str:
    """Return the video of the demo that is shown."""
    found: Mapping[str, Any] = httpx.get(f"{url}/videos", trust_env=False).json()
    return str(found["items"][0]["videoId"])


def main() -> None:
    """Take all pictures again."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("chromium is not installed: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    try:
        with demonstrated() as (url, secret), sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=browser_path, args=["--no-sandbox"]
            )
            video = first_video(url)
            for picture in ALL:
                taken = take(browser, url, secret, video, picture)
                path = PICTURES / f"{picture.name}.webp"
                path.write_bytes(taken)
                sys.stdout.write(f"{path.relative_to(PICTURES.parents[1])}: {len(taken):,} bytes\n")
            browser.close()
    except ServerNotStarted as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
