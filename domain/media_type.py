"""Which media types a film may have, and how a client may write them."""

from __future__ import annotations

import re

from domain.errors import Invalid

PLAYED_BY_BROWSERS = frozenset(
    {
        "audio/aac",
        "audio/flac",
        "audio/mp3",
        "audio/mp4",
        "audio/mpeg",
        "audio/ogg",
        "audio/opus",
        "audio/wav",
        "audio/wave",
        "audio/webm",
        "audio/x-flac",
        "audio/x-m4a",
        "audio/x-wav",
        "video/3gpp",
        "video/3gpp2",
        "video/matroska",
        "video/mp4",
        "video/mpeg",
        "video/ogg",
        "video/quicktime",
        "video/webm",
        "video/x-m4v",
        "video/x-matroska",
    }
)
"""What one browser or another plays when its address is opened; the others save it or say no."""

FILMS = PLAYED_BY_BROWSERS | {
    "audio/3gpp",
    "audio/3gpp2",
    "audio/aacp",
    "audio/ac3",
    "audio/aiff",
    "audio/amr",
    "audio/amr-wb",
    "audio/basic",
    "audio/eac3",
    "audio/m4a",
    "audio/matroska",
    "audio/mpeg3",
    "audio/vnd.dts",
    "audio/vnd.dts.hd",
    "audio/vnd.wave",
    "audio/vorbis",
    "audio/x-aac",
    "audio/x-aiff",
    "audio/x-caf",
    "audio/x-flac+ogg",
    "audio/x-matroska",
    "audio/x-mp3",
    "audio/x-mpeg",
    "audio/x-mpeg-3",
    "audio/x-ms-wma",
    "audio/x-opus+ogg",
    "audio/x-pn-wav",
    "audio/x-vorbis+ogg",
    "video/3gp",
    "video/av1",
    "video/avi",
    "video/divx",
    "video/dv",
    "video/flv",
    "video/h264",
    "video/h265",
    "video/matroska-3d",
    "video/mj2",
    "video/mov",
    "video/mp2p",
    "video/mp2t",
    "video/mpg",
    "video/msvideo",
    "video/vnd.avi",
    "video/vnd.dlna.mpeg-tts",
    "video/vnd.rn-realvideo",
    "video/wmv",
    "video/x-divx",
    "video/x-dv",
    "video/x-f4v",
    "video/x-flv",
    "video/x-matroska-3d",
    "video/x-mpeg",
    "video/x-ms-asf",
    "video/x-ms-wmv",
    "video/x-msvideo",
    "video/x-ogm+ogg",
    "video/x-theora",
    "video/x-theora+ogg",
}
"""Containers and codecs of films; no pages, pictures, subtitles or playlists, whatever their type.

The registered names are of https://www.iana.org/assignments/media-types, the others (`x-…`, and
some without that) are what systems write for them all the same.
"""

WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Chromium's MediaRecorder names two codecs without the quotes that a comma needs.
VALUE = r"[!#$%&'*+.^_`|~0-9A-Za-z,-]+"
QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t -~])*"'
# White space belongs to what follows it, so that there is one way to read it.
MEDIA_TYPE = re.compile(rf"({WORD}/{WORD})(?:[ \t]*;(?:[ \t]*{WORD}=(?:{VALUE}|{QUOTED}))?)*")


def film_type(content_type: str) -> str | None:
    """Return type and subtype in lower case, without parameters; None for what is no film.

    The grammar is that of RFC 9110 (8.3.1), in ASCII, with white space around it.
    """
    found = MEDIA_TYPE.fullmatch(content_type.strip(" \t"))
    bare = found[1].lower() if found else None
    return bare if bare in FILMS else None


def check_film_type(content_type: str) -> None:
    """Raise Invalid unless this is the media type of a film."""
    if film_type(content_type) is None:
        raise Invalid(
            "`contentType` has to be video/… or audio/… of a known format, such as `video/mp4` or "
            '`video/webm; codecs="vp9,opus"`; pages, pictures and playlists are no films.',
            field="contentType",
        )
