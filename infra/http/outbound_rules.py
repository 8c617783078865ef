"""Which servers that somebody else named may be called: none in a network of ours.

An address counts in whatever form it is written, and as what it stands for.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What IANA lists as special (RFC 6890 and its registry), multicast, and what is reserved.
SPECIAL = tuple(
    ip_network(each)
    for each in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
# All other addresses of version 6 are local, multicast, reserved, or stand for one of version 4.
PUBLIC6 = ip_network("2000::/3")
# NAT64 by its well-known prefix (RFC 6052): the last 32 bits are the address that is meant.
NAT64 = ip_network("64:ff9b::/96")

HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
# Resolvers read such names as addresses: 2130706433, 0x7f.1, 127.1, 017700000001.
NUMERIC = re.compile(r"(.*\.)?(0[xX][0-9a-fA-F]*|[0-9]+)\.?")


class UrlRefused(ValueError):
    """A URL at which nobody may be called; the text says why."""


class OutboundRules(NamedTuple):
    """Which servers may be called: those on the internet by HTTPS, and what is said here."""

    allow_http: bool = False
    networks: tuple[Network, ...] = ()

    def check_url(self, url: str) -> None:
        """Raise UrlRefused for a URL that can't be meant; a name is not resolved here."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UrlRefused(f"it is no URL: {error}") from error
        if parts.scheme != "https" and not (self.allow_http and parts.scheme == "http"):
            raise UrlRefused(f"it has to begin with https://{' or http://' * self.allow_http}")
        if not host or parts.username is not None or parts.fragment or parts.port == 0:
            raise UrlRefused("it has a host, no user, and no fragment")
        address = _literal(host)
        if address is None and (NUMERIC.fullmatch(host) or not HOST.fullmatch(host)):
            raise UrlRefused(f"{host!r} is neither a name nor an address in its usual form")
        if address is not None and not self.allow(address):
            raise UrlRefused(f"{host} is no address on the internet (WEBHOOK_ALLOWED_NETWORKS)")

    def allow(self, address: Address) -> bool:
        """Return whether a server with this address may be called."""
        meant = _meant(address)
        return is_public(meant) or any(meant in network for network in self.networks)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _meant(address: Address) -> Address:
    """Return the address of version 4 that one of version 6 stands for, else the address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_public(address: Address) -> bool:
    """Return whether an address is one of a server on the internet."""
    meant = _meant(address)
    if isinstance(meant, IPv6Address) and (meant not in PUBLIC6 or meant.scope_id is not None):
        return False
    return not any(meant in network for network in SPECIAL)


INTERNET = OutboundRules()
"""Servers on the internet, by HTTPS."""
