"""What a request tells of itself: its headers and id, its size, who sends it, the host it names.

Also the class of its rate limits, and how many requests were answered, and how fast.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import accumulate, chain
from urllib.parse import parse_qsl, urlsplit

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Message, Receive, Scope

from infra.http.problems import Problem
from infra.metrics import REGISTRY, SECONDS

Network = IPv4Network | IPv6Network
REMEMBERED = 10_000
LONGEST_REMEMBERED = 200
# What one subscriber gets of IPv6 (RFC 6177), so that nobody has 2^64 buckets.
SUBSCRIBER_BITS = 64
LOCALHOST = "localhost"
# The longest list id is 2,000 characters of a path, the longest signed URL 2,200 of a query.
MOST_PATH_BYTES = 2048
MOST_QUERY_BYTES = 8192
MOST_HEADER_BYTES = 32 * 1024
# What the edge keeps in a request's scope: its headers, those that its answer gets beside its own,
# and the problem of a body that is too large.
HEADERS = "backlot.headers"
ADDED = "backlot.added"
TOO_LARGE = "backlot.too_large"
READING = frozenset({"GET", "HEAD", "OPTIONS"})
# What only operators and auditors ask for, by the first part of its path; and what is another's.
ADMIN = frozenset(
    {"admin", "audit", "metrics", "moderation", "operations", "projections", "webhooks"}
)
USERS, OWN, STATS = "/users/", "/users/me/", "/stats"
# Whoever watches over the program asks these, and may not be told to come back later.
UNLIMITED = frozenset({"/healthz", "/readyz"})
WATCHING = ("/watch", "/watch-time", "/share", "/shown", "/chosen")
UPLOADS = frozenset({"uploads", "tus"})
LIVE = "/events"
# Operators ask why something is as it is: that is computed anew each time.
WHY = "/why"
# Signed URLs are their own permission: whoever has one was somebody when it was made.
OBJECTS = "/objects/"


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request by its name in lower case; of several the first one."""
    value: bytes | None = scope[HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


def plain_query(scope: Scope) -> dict[str, str] | None:
    """Return the parameters of a query by name; None where the framework has to look at it."""
    if not scope["query_string"]:
        return {}
    try:
        given = parse_qsl(scope["query_string"].decode("ascii"), True, True)
    except ValueError:
        return None
    found = dict(given)
    return found if len(found) == len(given) else None


def add_header(scope: Scope, name: bytes, value: str) -> None:
    """Have the answer carry a header, whatever it is; the first value of a name stays."""
    scope.setdefault(ADDED, {}).setdefault(name, value.encode("latin-1"))


def new_request_id(scope: Scope) -> str:
    """Return the id that the client gave its request, or a new one."""
    given = header(scope, b"x-request-id")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(128):032x}"


def request_id_of(scope: Scope) -> str:
    """Return the id of the request, which is also the correlation id of what it causes."""
    return str(scope.get("request_id", ""))


def check_size(scope: Scope) -> None:
    """Raise Problem 414 or 431 for a request line or headers that no client of ours sends."""
    path, query = scope.get("raw_path") or b"", scope.get("query_string", b"")
    # Without the raw path, as some servers leave it, the decoded one is at most as long.
    if max(len(path), len(scope["path"])) > MOST_PATH_BYTES or len(query) > MOST_QUERY_BYTES:
        detail = f"A path has at most {MOST_PATH_BYTES} bytes, a query {MOST_QUERY_BYTES}."
        raise Problem(414, "uri-too-long", detail, headers={"Connection": "close"})
    if sum(map(len, chain.from_iterable(scope["headers"]))) > MOST_HEADER_BYTES:
        detail = f"The headers have more than {MOST_HEADER_BYTES} bytes."
        raise Problem(431, "headers-too-large", detail, headers={"Connection": "close"})


def has_body(scope: Scope) -> bool:
    """Return whether a request has more than its headers (RFC 9112, 6.3)."""
    sent = scope[HEADERS]
    return b"transfer-encoding" in sent or sent.get(b"content-length", b"0") != b"0"


def limited(receive: Receive, scope: Scope, most: int) -> Receive:
    """Return what refuses a body of more than `most` bytes as it arrives.

    Raise Problem 413 where its declared length tells.
    """
    declared = header(scope, b"content-length")
    if declared and declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    taken = 0

    async def counting() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            # FastAPI would turn it into a 400; the handler looks here first.
            scope[TOO_LARGE] = _too_large(most)
            raise scope[TOO_LARGE]
        return message

    return counting


def _too_large(most: int) -> Problem:
    detail = f"The body has more than {most} bytes."
    return Problem(413, "too-large", detail, headers={"Connection": "close"})


def rate_class(method: str, path: str) -> str | None:
    """Return the class of a request; None for one that is never limited."""
    if path in UNLIMITED:
        return None
    if path.startswith(OBJECTS):
        return "watch" if method in READING else "upload"
    first = path[1:].partition("/")[0]
    if first in ADMIN or path.endswith(WHY) or (path.startswith(USERS) and not _is_of_users(path)):
        return "admin"
    if method in READING:
        return "live" if path.endswith(LIVE) and first == "videos" else "read"
    if first in UPLOADS:
        return "upload"
    return "watch" if path.endswith(WATCHING) else "write"


def _is_of_users(path: str) -> bool:
    """Return whether users ask for what lies under USERS, and not only operators."""
    return f"{path}/".startswith(OWN) or path.endswith(STATS)


class Proxies:
    """The proxies before this program whose word about their clients is taken."""

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.any_trusted = bool(self._trusted)
        self._is_trusted = lru_cache(REMEMBERED)(self._search)
        self._remembered = lru_cache(REMEMBERED)(self._client)

    def client(self, peer: str, forwarded: bytes | None) -> str:
        """Return who sends a request: `peer`, or whom a trusted one names in `X-Forwarded-For`.

        The last address there that is no trusted proxy's is the client's: what stands before it
        was written by the client.
        """
        if forwarded is None:
            return peer
        if len(forwarded) > LONGEST_REMEMBERED:
            return self._client(peer, forwarded)
        return self._remembered(peer, forwarded)

    def _client(self, peer: str, forwarded: bytes) -> str:
        if not self._is_trusted(peer):
            return peer
        client = peer
        for word in reversed(forwarded.decode("latin-1").split(",")):
            named = _bare(word.strip())
            if named is None:
                break
            client = named
            if not self._is_trusted(named):
                break
        return client

    def _search(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            # A socket file: only this machine's programs reach it.
            return address == ""
        plain = found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
        return any(plain in network for network in self._trusted)


def _bare(word: str) -> str | None:
    """Return the address in a word, with or without a port; None for anything else."""
    if word.startswith("["):
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:
        word = word.partition(":")[0]
    try:
        return str(ip_address(word))
    except ValueError:
        return None


def client_address(scope: Scope) -> str:
    """Return the address of the client, as trusted proxies tell it; '' on a socket file."""
    host, _ = scope.get("client") or ("", 0)
    proxies: Proxies = scope["app"].proxies
    if not proxies.any_trusted:
        return str(host)
    return proxies.client(str(host), scope[HEADERS].get(b"x-forwarded-for"))


@lru_cache(REMEMBERED)
def subscriber(address: str) -> str:
    """Return what stands for whoever has this address: of IPv6 the network of their own."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Network((found, SUBSCRIBER_BITS), strict=False).network_address)
    return str(found)


class Hosts:
    """The hosts that requests may name where no public URL is configured.

    URLs are made from them, and a page of another site could have its name lead here (DNS
    rebinding): so only loopback counts, and the address that this server has.
    """

    def __init__(self, bound: Collection[str] = ()) -> None:
        """`bound` are the names or addresses that the server was told to listen on."""
        self._bound = {name.lower() for name in bound}
        self._known: dict[tuple[str, str], bool] = {}

    def knows(self, host: str | None, scope: Scope) -> bool:
        """Return whether a `Host` is this server's; one that is missing names nobody else."""
        if host is None:
            return True
        server, _ = scope.get("server") or ("", 0)
        asked = host, str(server)
        known = self._known.get(asked)
        if known is None:
            known = self._is_own(*asked)
            if len(host) <= LONGEST_REMEMBERED and len(self._known) < REMEMBERED:
                self._known[asked] = known
        return known

    def _is_own(self, host: str, server: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in (LOCALHOST, server) or name in self._bound:
                return True
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or (server != "" and address == _address(server))


def _address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return None


@dataclass(slots=True)
class Timings:
    """Requests of one method and route: how many fell into each bucket, and their seconds."""

    counts: list[int]
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)


class RequestMetrics(Collector):
    """Requests by method, route template and status, and the time that they took.

    prometheus_client's own counters cost a request as much as its route. One event loop observes;
    the figures get Prometheus' shape when somebody scrapes them.
    """

    def __init__(self, prefix: str, buckets: Sequence[float]) -> None:
        """`buckets` are upper bounds in seconds, in rising order."""
        self._prefix = prefix
        self._bounds = list(buckets)
        self._timed: dict[tuple[str, str], Timings] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take in one answered request."""
        timed = self._timed.get((method, route))
        if timed is None:
            timed = self._timed[method, route] = Timings([0] * (len(self._bounds) + 1))
        timed.counts[bisect_left(self._bounds, seconds)] += 1
        timed.seconds += seconds
        timed.statuses[status] += 1

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            f"{self._prefix}_requests",
            "HTTP requests answered, by route template.",
            labels=("method", "route", "status"),
        )
        seconds = HistogramMetricFamily(
            f"{self._prefix}_request_seconds",
            "Time to answer an HTTP request, by route template.",
            labels=("method", "route"),
        )
        names = [*map(str, self._bounds), "+Inf"]
        for labels, timed in list(self._timed.items()):
            for status, count in list(timed.statuses.items()):
                requests.add_metric((*labels, str(status)), count)
            below = list(zip(names, accumulate(timed.counts), strict=True))
            seconds.add_metric(labels, below, timed.seconds)
        return (requests, seconds)


HTTP = RequestMetrics("backlot_http", SECONDS)
REGISTRY.register(HTTP)
