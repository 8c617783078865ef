"""Addresses in a request: who sends it, through proxies that are trusted, and the host it names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

Network = IPv4Network | IPv6Network
REMEMBERED = 10_000
LONGEST_REMEMBERED = 200
# What one subscriber gets of IPv6 (RFC 6177), so that nobody has 2^64 buckets.
SUBSCRIBER_BITS = 64
LOCALHOST = "localhost"


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
