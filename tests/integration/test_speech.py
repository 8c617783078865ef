"""Speech in videos: what ffmpeg takes out of them, limits, and Whisper where it is installed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from infra import speech, whisper
from infra.settings import Settings, load_settings
from infra.speech import (
    MediaTooLarge,
    MediaUnreadable,
    SpeechUnavailable,
    Transcript,
    TranscriptionFailed,
    TranscriptionLimits,
    TranscriptionTimedOut,
    WhisperTranscriber,
    available,
    make_transcriber,
)
from tests.integration.whisper_models import needs_whisper, save_untrained
from tests.support import children, requires

pytestmark = pytest.mark.anyio
SECONDS = 2.0
SOUND = ("-f", "lavfi", "-i", f"sine=frequency=300:duration={SECONDS}")
PICTURE = ("-f", "lavfi", "-i", f"testsrc=size=64x64:rate=5:duration={SECONDS}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make(path: Path, *inputs: str) -> Path:
    subprocess.run(
        [requires("ffmpeg"), "-nostdin", "-v", "error", *inputs, "-shortest", str(path)], check=True
    )
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def film(folder: Path) -> Path:
    return make(folder / "film.mp4", *SOUND, *PICTURE)


@pytest.fixture(scope="module")
def mute_film(folder: Path) -> Path:
    return make(folder / "mute.mp4", *PICTURE)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def url(film: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(film.parent)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Whisper were here, for what comes before it."""
    monkeypatch.setattr(whisper, "is_installed", lambda: True)


async def test_a_film_has_sound_a_duration_and_a_size(film: Path) -> None:
    media = await speech.probe(str(film))
    assert media.has_sound
    assert media.duration_seconds == pytest.approx(SECONDS, abs=0.3)
    assert media.size_bytes == size_of(film)


@pytest.mark.parametrize(("most", "seconds"), [(60.0, SECONDS), (0.5, 0.5)])
async def test_sound_is_decoded_up_to_a_limit(
    film: Path, tmp_path: Path, most: float, seconds: float
) -> None:
    await speech.decode(str(film), tmp_path / "samples", most)
    assert size_of(tmp_path / "samples") / (2 * whisper.SAMPLE_RATE) == pytest.approx(
        seconds, abs=0.1
    )


async def test_a_film_is_read_from_a_url(film: Path, url: str, tmp_path: Path) -> None:
    assert (await speech.probe(f"{url}/film.mp4?signed=x")).has_sound
    await speech.decode(f"{url}/film.mp4", tmp_path / "samples", 60.0)
    assert size_of(tmp_path / "samples") > whisper.SAMPLE_RATE


async def test_a_url_that_fails_may_succeed_later_and_stays_secret(url: str) -> None:
    requires("ffprobe")
    with pytest.raises(MediaUnreadable) as caught:
        await speech.probe(f"{url}/gone.mp4?signature=secret")
    assert caught.value.retryable
    assert "secret" not in str(caught.value)


async def test_a_file_that_is_no_film_never_becomes_one(tmp_path: Path) -> None:
    requires("ffprobe")
    (tmp_path / "film.mp4").write_bytes(b"\x00\x01 no film" * 100)
    with pytest.raises(MediaUnreadable) as caught:
        await speech.probe(str(tmp_path / "film.mp4"))
    assert not caught.value.retryable
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{secret}'\n",
    ],
)
async def test_an_upload_can_not_make_it_read_another_file(
    film: Path, tmp_path: Path, playlist: str
) -> None:
    upload = tmp_path / "upload.mp4"
    upload.write_text(playlist.format(secret=film))
    with pytest.raises(MediaUnreadable):
        await speech.probe(str(upload))
    with pytest.raises(MediaUnreadable):
        await speech.decode(str(upload), tmp_path / "samples", 60.0)


@pytest.mark.usefixtures("installed")
async def test_a_film_without_sound_has_an_empty_transcript(mute_film: Path) -> None:
    heard = await WhisperTranscriber("base").transcribe(mute_film)
    assert (heard.language, heard.text, heard.segments) == (None, "", ())
    assert heard.duration_seconds == pytest.approx(SECONDS, abs=0.3)


@pytest.mark.usefixtures("installed")
async def test_a_film_over_the_limit_of_bytes_is_refused(film: Path) -> None:
    with pytest.raises(MediaTooLarge):
        await WhisperTranscriber("base", TranscriptionLimits(media_bytes=100)).transcribe(film)


@pytest.mark.usefixtures("installed")
async def test_work_over_the_limit_of_time_is_ended(film: Path) -> None:
    with pytest.raises(TranscriptionTimedOut):
        await WhisperTranscriber("base", TranscriptionLimits(work_seconds=0.02)).transcribe(film)
    assert children("ffmpeg") + children("ffprobe") == []


async def test_a_program_is_gone_when_nobody_waits_for_it() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await speech.run_program("sleep", "3600")
    assert children("sleep") == []


async def test_an_untrained_model_hears_something(film: Path, tmp_path: Path) -> None:
    needs_whisper()
    model = save_untrained(tmp_path / "untrained.pt")
    settings = load_settings({"WHISPER_MODEL": model, "SPEECH_TRANSCRIPTION": "on"})
    transcriber = make_transcriber(settings.speech)
    assert transcriber is not None
    heard = await transcriber.transcribe(film)
    assert isinstance(heard, Transcript)
    assert heard.duration_seconds == pytest.approx(SECONDS, abs=0.3)
    assert heard.text == " ".join(part.text for part in heard.segments)
    assert (heard.language is None) == (heard.text == "")
    assert transcriber.name == "openai-whisper/untrained.pt"


async def test_a_model_that_can_not_be_loaded_is_told(film: Path, tmp_path: Path) -> None:
    needs_whisper()
    (tmp_path / "odd.pt").write_bytes(b"odd")
    with pytest.raises(TranscriptionFailed, match="WHISPER_MODEL"):
        await WhisperTranscriber(str(tmp_path / "odd.pt")).transcribe(film)


@pytest.mark.parametrize(
    ("setting", "here", "transcribes"),
    [("auto", True, True), ("auto", False, False), ("on", True, True), ("off", True, False)],
)
async def test_speech_is_transcribed_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, setting: str, here: bool, transcribes: bool
) -> None:
    monkeypatch.setattr(whisper, "is_installed", lambda: here)
    monkeypatch.setattr(speech, "missing_programs", list)
    settings = load_settings({"SPEECH_TRANSCRIPTION": setting}).speech
    assert available(settings) is transcribes
    assert (make_transcriber(settings) is not None) is transcribes


async def test_on_without_what_it_needs_names_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper, "is_installed", lambda: False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SpeechUnavailable, match=r"backlot\[whisper\].* and ffmpeg and ffprobe"):
        available(load_settings({"SPEECH_TRANSCRIPTION": "on"}).speech)


async def test_programs_that_read_a_stranger_s_film_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("ffprobe", "ffmpeg"):
        script = tmp_path / program
        script.write_text('#!/bin/sh\n/usr/bin/env > "$0.env"\nexit 1\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in (*Settings.variables(), *Settings.files(), "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    with pytest.raises(MediaUnreadable):
        await speech.probe("film.mp4")
    with pytest.raises(MediaUnreadable):
        await speech.decode("film.mp4", tmp_path / "samples", 1.0)
    # Whisper's process is started the same way.
    shown = await speech.run_program(sys.executable, "-c", "import os; print(dict(os.environ))")
    told = [(tmp_path / f"{program}.env").read_text() for program in ("ffprobe", "ffmpeg")]
    for environment in (*told, shown.output.decode()):
        assert "PATH" in environment
        assert "hunter2" not in environment
