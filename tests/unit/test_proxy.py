"""The proxy's configuration against the composition and the API: names, ports, limits, problems."""

from __future__ import annotations

import json
import re

import pytest

from infra.http.problems import TITLES
from infra.settings import load_settings
from readapi.live import HEARTBEAT_SECONDS
from tests.composition import PROJECT, read_composition, seconds

CONFIGURATION = (PROJECT / "deploy" / "nginx.conf").read_text()
UPSTREAMS = (PROJECT / "deploy" / "upstreams.conf").read_text()
COMPOSITION = read_composition()
PROXY = COMPOSITION.services["proxy"]


def servers() -> dict[str, tuple[str, int]]:
    """Host and port by the name of their upstream."""
    found = re.findall(r"upstream (\w+) \{[^}]*server (\w+):(\d+) resolve;[^}]*\}", UPSTREAMS)
    return {name: (host, int(port)) for name, host, port in found}


def test_upstreams_are_services_that_listen_there_and_can_be_reached() -> None:
    assert set(servers()) == {"commands", "queries", "web", "console", "objects"}
    for name, (host, port) in servers().items():
        service = COMPOSITION.services[host]
        assert set(PROXY.given["networks"]) <= set(service.given["networks"])
        variable = "ADMIN_PORT" if name == "console" else "BACKLOT_PORT"
        expected = service.environment.get(variable, "3900")
        assert port == int(expected)


def test_every_upstream_that_is_named_is_defined() -> None:
    named = set(re.findall(r"proxy_pass http://(\w+);", CONFIGURATION))
    (block,) = re.findall(r"map \$request_method \$side \{([^}]*)\}", CONFIGURATION)
    sides = dict(re.findall(r"(\w+) (\w+);", block))
    assert sides == {"default": "commands", "GET": "queries", "HEAD": "queries"}
    assert named | set(sides.values()) == set(servers())


def test_it_listens_where_the_composition_publishes_and_asks() -> None:
    public = [int(port) for port in re.findall(r"listen (\d+);", CONFIGURATION)]
    assert sorted(public) == sorted(PROXY.ports)
    (itself,) = re.findall(r"listen (127\.0\.0\.1:\d+);", CONFIGURATION)
    assert f"http://{itself}/" in PROXY.health
    # The image's user is nobody's root.
    assert min(public) >= 1024


def test_its_files_are_where_nginx_looks() -> None:
    assert dict(PROXY.mounts) == {
        "./deploy/nginx.conf": "/etc/nginx/nginx.conf",
        "./deploy/upstreams.conf": "/etc/nginx/upstreams.conf",
    }
    assert "include upstreams.conf;" in CONFIGURATION
    written = re.findall(r"(?:_temp_path|pid) (/\S+);", CONFIGURATION)
    assert len(written) == 6
    assert all(path.startswith("/tmp/") for path in written), "all else is read-only"
    assert PROXY.given["tmpfs"] == ["/tmp"]


def test_backlot_refuses_large_bodies_before_the_proxy_does() -> None:
    (most,) = re.findall(r"client_max_body_size (\d+)m;", CONFIGURATION)
    assert int(most) * 1024 * 1024 > load_settings({}).server.body_limit_bytes


def test_live_counts_are_never_silent_for_too_long() -> None:
    patience = re.findall(r"proxy_read_timeout (\w+);", CONFIGURATION)
    assert all(seconds(text) > 2 * HEARTBEAT_SECONDS for text in patience)


@pytest.mark.parametrize(("status", "text"), re.findall(r"return (\d+) '(\{.*\})';", CONFIGURATION))
def test_problems_of_its_own_are_those_of_the_api(status: str, text: str) -> None:
    told = json.loads(text)
    slug, title = TITLES[int(status)]
    assert told["status"] == int(status)
    assert (told["type"], told["title"]) == (slug, title)
    assert set(told) == {"type", "title", "status", "detail", "requestId"}
