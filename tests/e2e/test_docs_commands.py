"""The commands of the documentation, carried out as they stand there on a running program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from backlot.cli import main
from tests.command_line import readable
from tests.docs_commands import CORRELATION, PAGES, ROOT, UUID, Named, in_pages, shell_blocks
from tests.e2e.guide import carried_out
from tests.e2e.program import OWN_VARIABLES, Program
from tests.e2e.videos import MP4, read, see, upload
from tests.support import eventually, requires, unused_port

REQUEST = "0f4e-of-the-docs"
# Whoever started one of them would wait, or change this machine; each has tests of its own.
NOT_HERE = (
    "up",
    "demo",
    "bench",
    "events tail --follow",
    "--install-completion",
    "--show-completion",
)
# What they end with here, where nothing is dead, parked, differs or is replayed, there is no
# terminal, and Redis and tasks are inside the server; everything else does what it says.
ENDS = {
    "events accept": {4},
    "events import": {0},
    # The store is not empty here, and its log was never rewritten.
    "events rewrite": {4},
    "events verify --follows": {1},
    # There is no file of anchors here.
    "events prove --check": {4},
    "likes reconcile": {4},
    # Bob was here only if the README's tour was run before.
    "privacy certify bob": {0, 1},
    "privacy forget bob": {0, 4},
    "privacy certify": {1},
    "privacy forget alice": {2},
    "projections cancel likes": {4},
    "projections confirm likes": {4},
    "projections drop-old likes": {2},
    "projections parked discard": {2},
    "projections parked park": {2},
    "projections parked retry": {0},
    "projections parked show": {4},
    "projections pause likes --replay": {4},
    "projections replay counters": {4},
    "projections rollback likes": {2},
    "tasks dead": {4},
    "tasks list": {4},
    "tasks discard": {2},
    "tasks redrive": {2},
    "topics dead discard": {2},
    "topics redrive": {2},
    # No webhook has the id that stands for one.
    "webhooks deliveries": {4},
    "webhooks enable": {4},
    "webhooks repeat": {4},
    "webhooks rotate": {4},
    "webhooks skip": {2},
    "webhooks test": {4},
}


@pytest.fixture(scope="module")
def keys(short_dir: Path) -> tuple[Path, Path]:
    """A private key, and its public one, as docs/audit.md makes them."""
    openssl = requires("openssl")
    private, public = short_dir / "seal-key.pem", short_dir / "public.pem"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


@pytest.fixture(scope="module")
def site(short_dir: Path, keys: tuple[Path, Path]) -> Iterator[Program]:
    """A program of these tests' own: they replay, pause and verify."""
    private, _ = keys
    variables = {"SEAL_KEY_FILE": str(private), "SEAL_SECONDS": "0.1"}
    program = Program(short_dir / "docs", unused_port(), variables)
    try:
        yield program.start()
    finally:
        program.clean_up()


@pytest.fixture
def video(site: Program) -> str:
    """A video that was renamed, liked and commented: at least three versions, four positions."""
    alice = site.client("alice")
    made = upload(alice)
    read(alice.patch(f"/videos/{made}", json={"title": "Renamed"}))
    read(alice.put(f"/videos/{made}/like"))
    # Who is forgotten: the tour of README.md needs its own Bob.
    read(site.client("ben").put(f"/videos/{made}/like"))
    headers = {"X-Request-Id": REQUEST}
    said = alice.post(f"/videos/{made}/comments", json={"content": "Nice."}, headers=headers)
    see(alice, said)
    eventually(lambda: caught_up(site))
    return made


def caught_up(site: Program) -> bool:
    stats = site.client("root", admin=True).get("/audit/stats").json()
    return bool(stats["indexed"] == stats["head"])


class Shell:
    """Carries commands out in this process, in the folder of a program and with its settings."""

    def __init__(
        self, site: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._site, self._capsys, self._monkeypatch = site, capsys, monkeypatch
        monkeypatch.chdir(site.home)
        for name in OWN_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, text in site.environment().items():
            monkeypatch.setenv(name, text)
        monkeypatch.setenv("XDG_STATE_HOME", str(site.home / "state"))

    def __call__(self, words: tuple[str, ...]) -> tuple[int, str]:
        """The exit code, and everything that was said."""
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["backlot", *words])
            if words[:2] == ("events", "import"):
                patched.setenv("DATABASE_URL", empty_database(self._site))
            with pytest.raises(SystemExit) as ended:
                main()
        said = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out + said.err


def empty_database(site: Program) -> str:
    """A database named `drill` beside the program's own."""
    with psycopg.connect(site.database_url, autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS drill")
        conn.execute("CREATE DATABASE drill")
    return urlsplit(site.database_url)._replace(path="/drill").geturl()


def to_run() -> list[Named]:
    """The commands of all pages in order, each once, without those that are only mentioned.

    Guides are followed whole elsewhere: `tests/e2e/test_guides.py`.
    """
    found = {named.words: named for named in in_pages(PAGES) if readable(named.words)}
    return [named for named in found.values() if not " ".join(named.words).startswith(NOT_HERE)]


def expected(words: tuple[str, ...]) -> set[int]:
    line = " ".join(words)
    fitting = [codes for start, codes in ENDS.items() if line.startswith(start)]
    return fitting[0] if fitting else {0}


def test_every_command_does_what_its_page_says(
    site: Program,
    video: str,
    keys: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film = site.home / "film.mp4"
    film.write_bytes(MP4)
    shutil.copy(keys[1], site.home / "public.pem")
    meant = {UUID: video, "$FILE": str(film), "FILE": str(film), CORRELATION: REQUEST}
    meant |= {"12345": "3", "12000": "3", "bob": "ben"}
    shell = Shell(site, capsys, monkeypatch)
    wrong = []
    for named in to_run():
        words = tuple(meant.get(word, word) for word in named.words)
        code, said = shell(words)
        if code not in expected(named.words):
            wrong.append(f"{named} ended with {code}: {said}")
    assert wrong == []


def test_the_first_tour_leads_to_its_end(site: Program, clone: Path) -> None:
    """Every block of README.md, word for word but for the port; the film is the small one."""
    requires("curl")
    blocks = shell_blocks(ROOT / "README.md")
    typed = [block for block in blocks if not block.startswith(("make ", "ffmpeg "))]
    script = "".join(typed).replace("http://127.0.0.1:8000", site.url)
    told = carried_out(script, site, clone)
    for said in (
        "206 Partial Content",
        "the same bytes",
        '"likesCount":1',
        "¡Qué bonito!",
        "upload.completed",
        "switched at position",
    ):
        assert said in told, told
