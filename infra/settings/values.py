"""Groups of settings, and what their values may look like.

Each check says in a few words what is wrong, and never repeats a secret.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr

from domain.text import shows

MIN_SECRET_BYTES = 32
# Of a secret's runs of three characters, and of its steps from one to the next, so many differ.
MIN_PATTERNS = 16
# What is left of a secret without these words has so many characters.
MIN_OWN_CHARACTERS = 16
# What examples, templates and tutorials put where a secret belongs, and rows of keyboards.
EXAMPLE_WORDS = (
    "correcthorsebatterystaple", "qwertyuiopasdfghjklzxcvbnm", "qwertyuiop", "asdfghjkl", "zxcvbnm",
    "backlot", "changeme", "changethis", "openssl", "randhex", "generate", "replace", "default",
    "example", "password", "passphrase", "production", "development", "supersecret", "topsecret",
    "secret", "signing", "random", "string", "sample", "insert", "please", "change", "hunter2",
    "letmein", "welcome", "admin", "dummy", "super", "very", "long", "your", "this", "here", "now",
    "jwt", "key", "foo", "bar", "baz", "todo", "256bit", "at", "in", "for", "my", "me", "with",
)  # fmt: skip
ADVICE = "make one with `openssl rand -hex 32`"
MOST_LANGUAGES = 16
MOST_TERMS, MOST_TERM_CHARACTERS = 200, 60
MOST_WATCHED, MOST_WATCHED_CHARACTERS = 2_000, 100
LANGUAGE = re.compile("[a-z]{2}")
ENCRYPTION_KEY = re.compile("[0-9a-fA-F]{64}")
ANCHOR_BUCKET = re.compile(
    r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,254})/(?P<prefix>[\w.-]+(?:/[\w.-]+)*)"
)
# Names of other scripts are sent in their ASCII form (`xn--…`).
ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
USUAL_PORTS = {"http": 80, "https": 443}
BROKERS = ("redis://", "rediss://", "amqp://", "amqps://")


class SettingsGroup(BaseModel):
    """The settings of one part; the alias of each field is its environment variable.

    Two groups may read the same variable.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True)


def variables(prefix: str) -> Callable[[str], str]:
    """Return how the fields of a group are called in the environment, where they say no other."""
    return lambda field: prefix + field.upper()


def split_commas(value: object) -> object:
    if isinstance(value, str):
        return [part for part in (word.strip() for word in value.split(",")) if part]
    return value


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def postgres_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must start with postgresql:// or postgres://")
    try:
        conninfo_to_dict(value.get_secret_value())
    except ProgrammingError:
        # libpq's own message may repeat the password.
        raise ValueError("is not a PostgreSQL URL that libpq can read") from None
    return value


def redis_address(value: SecretStr) -> SecretStr:
    # Slow to import, and not needed where no Redis is configured.
    from infra.redis import check_redis_url

    check_redis_url(value.get_secret_value())
    return value


def lock_nodes(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    from infra.redis import server_of

    servers = [server_of(redis_address(url).get_secret_value()) for url in urls]
    twice = sorted({server for server in servers if servers.count(server) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice: each node is a server of its own")
    return urls


def secret_weakness(secret: str) -> str | None:
    """Return why a secret can be guessed, as the end of a sentence; None where nothing says so.

    Looks at its length, at patterns that repeat or count, and at words of well-known examples.
    """
    if len(secret.encode()) < MIN_SECRET_BYTES:
        return f"must be at least {MIN_SECRET_BYTES} bytes long (RFC 7518, section 3.2)"
    runs = {secret[at : at + 3] for at in range(len(secret) - 2)}
    steps = [ord(after) - ord(before) for before, after in itertools.pairwise(secret)]
    if min(len(runs), len(set(itertools.pairwise(steps)))) < MIN_PATTERNS:
        return f"repeats a pattern; {ADVICE}"
    own = "".join(filter(str.isalnum, secret.lower()))
    for word in EXAMPLE_WORDS:
        own = own.replace(word, "")
    if len(own) < MIN_OWN_CHARACTERS:
        return f"is made of words that every guesser tries; {ADVICE}"
    return None


def strong_secret(value: SecretStr) -> SecretStr:
    if weakness := secret_weakness(value.get_secret_value()):
        raise ValueError(weakness)
    return value


def encryption_key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if not ENCRYPTION_KEY.fullmatch(text):
        raise ValueError(f"must be 64 hexadecimal digits; {ADVICE}")
    return strong_secret(SecretStr(text))


def pem(value: str) -> str:
    # Environment files hold one line per variable, so line breaks arrive as a backslash and an n.
    value = value.replace("\\n", "\n").strip() + "\n"
    if not value.startswith("-----BEGIN PUBLIC KEY-----"):
        raise ValueError("must be a PEM text that starts with -----BEGIN PUBLIC KEY-----")
    return value


def http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def http_urls(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(http_url, value))


def bare_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("must be http:// or https:// with a host, and a port if need be")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must hold no user, path or query; the bucket is S3_BUCKET")
    return value.rstrip("/")


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A file for anchors."""

    path: Path


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A bucket of S3 for anchors, and what their keys begin with."""

    bucket: str
    prefix: str


def anchor_places(value: object) -> object:
    words = split_commas(value)
    return tuple(map(_anchor_place, words)) if isinstance(words, list) else words


def _anchor_place(value: str) -> FilePlace | BucketPlace:
    if value.startswith("file:") and value != "file:":
        return FilePlace(Path(value.removeprefix("file:")).expanduser())
    if match := ANCHOR_BUCKET.fullmatch(value):
        return BucketPlace(match["bucket"], match["prefix"])
    raise ValueError(
        "must be file: and the path of the file, such as file:/mnt/seals.jsonl, or s3://, the "
        "bucket and a prefix, such as s3://proofs/seals; several with commas between"
    )


def broker_address(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url.startswith(BROKERS):
        raise ValueError(f"must start with one of {', '.join(BROKERS)}")
    return redis_address(value) if url.startswith("redis") else value


def host_and_port(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"must be host:port, or several of them with commas; not {value!r}")
    return values


class TcpAddress(NamedTuple):
    """Where a server listens: an address of this machine, and a port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nothing but this machine reaches it."""
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def tcp_address(value: object) -> object:
    """Read `address:port`, or a port alone, which is one of 127.0.0.1."""
    if not isinstance(value, str):
        return value
    host, _, port = value.strip().rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]") or "127.0.0.1")
    except ValueError:
        raise ValueError("must be a port or address:port, with an IP address") from None
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("must be a port or address:port, with a port from 1 to 65535")
    return TcpAddress(str(address), int(port))


def language_codes(values: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := next((value for value in values if not LANGUAGE.fullmatch(value)), None):
        raise ValueError(f"must be ISO 639-1 codes with commas between, as in de,fr; not {wrong!r}")
    if len(values) > MOST_LANGUAGES:
        raise ValueError(f"must name {MOST_LANGUAGES} languages at most; these are {len(values)}")
    return values


def terms(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) > MOST_TERMS:
        raise ValueError(f"must name {MOST_TERMS} terms at most; these are {len(values)}")
    for value in values:
        if len(value) > MOST_TERM_CHARACTERS:
            most, start = MOST_TERM_CHARACTERS, value[:20]
            raise ValueError(f"a term has {most} characters at most; {start!r}… has {len(value)}")
        if not any(map(str.isalnum, value)):
            raise ValueError(f"a term needs a letter or a digit; {value!r} has none")
    return values


def watched(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) > MOST_WATCHED:
        raise ValueError(f"must name {MOST_WATCHED} words at most; these are {len(values)}")
    for value in values:
        if len(value) > MOST_WATCHED_CHARACTERS:
            most, start = MOST_WATCHED_CHARACTERS, value[:20]
            raise ValueError(f"a word has {most} characters at most; {start!r}… has {len(value)}")
        if not shows(value):
            raise ValueError(f"a word needs a character that can be seen; {value!r} has none")
    return values


def lines(value: object) -> object:
    """Return the lines of a file; not blank ones, and none that begin with `#`."""
    if not isinstance(value, str):
        return value
    try:
        text = Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't be read as UTF-8 text: {error}") from None
    return [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]


def prices(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = {}
    for item in filter(None, (word.strip() for word in value.split(","))):
        model, _, both = item.rpartition("=")
        dear, _, dearer = both.partition("/")
        try:
            found[model] = (float(dear), float(dearer))
        except ValueError:
            model = ""
        if not model:
            raise ValueError("must read model=input/output,… in dollars per million tokens")
    return found


def numbers(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [item.partition("=") for item in filter(None, map(str.strip, value.split(",")))]
    try:
        return {name.strip(): float(number) for name, _, number in pairs}
    except ValueError:
        raise ValueError("must read name=number,…") from None


class RequestRate(NamedTuple):
    """How often something may be done: tokens that come back in a minute, and at most at once."""

    per_minute: float
    burst: int


MOST_PER_MINUTE, MOST_AT_ONCE = 1e8, 10**8


def rate(value: object) -> object:
    if not isinstance(value, str):
        return value
    per_minute, _, burst = value.partition("/")
    try:
        found = RequestRate(float(per_minute), int(burst))
    except ValueError:
        raise ValueError("must read per minute/at once, such as 60/20") from None
    if not (0 < found.per_minute <= MOST_PER_MINUTE and 0 < found.burst <= MOST_AT_ONCE):
        raise ValueError(f"both numbers must be above 0, and {MOST_AT_ONCE} at most")
    return found


def networks(value: object) -> object:
    words = split_commas(value)
    if not isinstance(value, str) or not isinstance(words, list):
        return value
    try:
        return tuple(ip_network(word) for word in words)
    except ValueError as error:
        raise ValueError(f"must be addresses or networks such as 10.0.0.0/8: {error}") from None


def origins(values: frozenset[str]) -> frozenset[str]:
    for value in values - {"*"}:
        try:
            known = _as_browsers_send(value)
        except ValueError:
            raise ValueError(
                "must be origins such as https://app.example.org, with commas between, or * alone; "
                f"not {value!r}"
            ) from None
        if known != value:
            raise ValueError(f"browsers send {known!r} as the origin; write that for {value!r}")
    if "*" in values and len(values) > 1:
        raise ValueError("must name origins, or * alone")
    return values


def _as_browsers_send(value: str) -> str:
    """Return an origin in the form of the URL standard; raise ValueError for what is none."""
    parts = urlsplit(value)
    host, port = parts.hostname, parts.port
    nothing_else = not (parts.path.strip("/") or parts.query or parts.fragment)
    if not (ORIGIN.fullmatch(value) and host and parts.username is None and nothing_else):
        raise ValueError(value)
    name = f"[{host}]" if ":" in host else host
    if port is None or port == USUAL_PORTS.get(parts.scheme):
        return f"{parts.scheme}://{name}"
    return f"{parts.scheme}://{name}:{port}"


MOST_PAUSES, MOST_PAUSE_SECONDS = 30, 7 * 86_400.0


def pauses(values: tuple[float, ...]) -> tuple[float, ...]:
    if not 1 <= len(values) <= MOST_PAUSES:
        raise ValueError(f"must name 1 to {MOST_PAUSES} pauses; these are {len(values)}")
    if wrong := next((each for each in values if not 0 <= each <= MOST_PAUSE_SECONDS), None):
        raise ValueError(f"a pause has 0 to {MOST_PAUSE_SECONDS:g} seconds; not {wrong:g}")
    return values


CommaSet = BeforeValidator(split_commas)
Lower = BeforeValidator(lower)
BareUrl = Annotated[str, AfterValidator(bare_url)] | None
HttpUrl = Annotated[str, AfterValidator(http_url)] | None
HttpUrls = Annotated[tuple[str, ...], CommaSet, AfterValidator(http_urls)]
Listen = Annotated[TcpAddress | None, BeforeValidator(tcp_address)]
PostgresUrl = Annotated[SecretStr, AfterValidator(postgres_url)] | None
RedisUrl = Annotated[SecretStr, AfterValidator(redis_address)] | None
BrokerUrl = Annotated[SecretStr, AfterValidator(broker_address)] | None
LockNodes = Annotated[tuple[SecretStr, ...], CommaSet, AfterValidator(lock_nodes)]
Servers = Annotated[tuple[str, ...], CommaSet, AfterValidator(host_and_port)]
Secret = Annotated[SecretStr, AfterValidator(strong_secret)] | None
EncryptionKey = Annotated[SecretStr, AfterValidator(encryption_key)] | None
"""A key of 256 bits, as hexadecimal digits."""
PublicKey = Annotated[str, AfterValidator(pem)] | None
Languages = Annotated[tuple[str, ...], CommaSet, AfterValidator(language_codes)]
Terms = Annotated[tuple[str, ...], CommaSet, AfterValidator(terms)]
WatchedTerms = Annotated[tuple[str, ...], CommaSet, AfterValidator(watched)]
TermsFile = Annotated[tuple[str, ...], BeforeValidator(lines), AfterValidator(watched)] | None
"""The words in a file, one a line."""
Prices = Annotated[dict[str, tuple[float, float]], BeforeValidator(prices)]
"""US dollars per million tokens of input and output, by model."""
Numbers = Annotated[dict[str, float], BeforeValidator(numbers)]
"""Numbers by name, as `name=number,…`."""
Rated = Annotated[RequestRate, BeforeValidator(rate)]
"""A rate, as `per minute/at once`."""
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(networks)]
"""Addresses or networks, with commas between."""
Pauses = Annotated[tuple[float, ...], CommaSet, AfterValidator(pauses)]
"""Pauses in seconds, with commas between."""
Origins = Annotated[frozenset[str], CommaSet, AfterValidator(origins)]
"""Origins of pages as browsers send them, or `*` alone."""
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path that may begin with `~`."""
AnchorPlaces = Annotated[tuple[FilePlace | BucketPlace, ...], BeforeValidator(anchor_places)]
