"""The object store of docker-compose.yml itself, as it is configured there.

It is a program in Rust that takes a quarter of an hour to build, so these tests run only where
GARAGE names it (`cargo install garage@2.5.0 --locked`; GARAGE=~/.cargo/bin/garage pytest …).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.objects.s3 import S3Store
from infra.settings.adapters import ObjectSettings
from tests.composition import PROJECT, SECRETS, read_composition
from tests.integration.object_store_contract import ObjectStoreContract
from tests.integration.s3_server import s3_store
from tests.nginx import running_nginx
from tests.support import eventually, unused_port

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

SERVICE = read_composition().services["garage"]
INIT = read_composition().services["garage-init"]
PORTS = {"127.0.0.1:3901": "rpc", "0.0.0.0:3900": "s3", "0.0.0.0:3903": "admin"}


@dataclass(frozen=True)
class Garage:
    """The running server, with the bucket and the key of the composition."""

    program: str
    configuration: Path
    ports: dict[str, int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of its own commands, as the health check of the composition runs one."""
        command = [self.program, "-c", str(self.configuration), *words]
        env = {**os.environ, **SERVICE.environment}
        return subprocess.run(command, env=env, check=False, capture_output=True, text=True)

    def prepare(self, **changes: str) -> subprocess.CompletedProcess[str]:
        """What the service `garage-init` does."""
        admin = {"GARAGE_ADMIN_URL": f"http://127.0.0.1:{self.ports['admin']}"}
        env = {**os.environ, **INIT.environment, **admin, **changes}
        script = [sys.executable, str(PROJECT / "deploy" / "garage_init.py")]
        return subprocess.run(script, env=env, check=False, capture_output=True, text=True)

    def place(self, **changes: str) -> ObjectSettings:
        env = read_composition().roles["commands"].environment
        given = {name: text for name, text in env.items() if name.startswith("S3_")}
        given |= {"S3_ENDPOINT_URL": self.url, "S3_PUBLIC_ENDPOINT_URL": self.url, **changes}
        return ObjectSettings.model_validate(given)


@pytest.fixture(scope="module")
def garage(short_dir: Path) -> Iterator[Garage]:
    program = os.environ.get("GARAGE")
    if program is None:
        pytest.skip("GARAGE names no program")
    ports = {name: unused_port() for name in PORTS.values()}
    folder = short_dir / "garage"
    folder.mkdir()
    text = (PROJECT / "deploy" / "garage.toml").read_text()
    text = text.replace("/var/lib/garage", str(folder))
    for address, name in PORTS.items():
        assert address in text
        text = text.replace(address, f"127.0.0.1:{ports[name]}")
    configuration = folder / "garage.toml"
    configuration.write_text(text)
    server = Garage(program, configuration, ports)
    named, *words = SERVICE.given["command"]
    assert named == "/garage"
    command = [program, "-c", str(configuration), *words]
    with (folder / "log").open("wb") as log:
        env = {**os.environ, **SERVICE.environment}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        check = SERVICE.given["healthcheck"]["test"][2:]
        eventually(lambda: server.run(*check).returncode == 0)
        for _ in range(2):
            prepared = server.prepare()
            assert prepared.returncode == 0, prepared.stderr
        yield server
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def media(garage: Garage, short_dir: Path) -> Iterator[str]:
    """Where clients reach it: the media port of the proxy."""
    away = f"127.0.0.1:{unused_port()}"
    objects = f"127.0.0.1:{garage.ports['s3']}"
    upstreams = {"commands": away, "queries": away, "objects": objects}
    with running_nginx(short_dir / "before-garage", upstreams) as proxy:
        yield proxy.media_url


class TestGarage(ObjectStoreContract):
    @pytest.fixture
    def store(self, garage: Garage, media: str) -> Iterator[S3Store]:
        opened = s3_store(garage.place(S3_PUBLIC_ENDPOINT_URL=media))
        yield opened
        opened.close()

    @pytest.fixture
    def base_url(self, media: str) -> str:
        return media


def client_of(garage: Garage, key: str, secret: str) -> S3Client:
    return boto3.client(
        "s3",
        endpoint_url=garage.url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


def test_the_key_may_use_the_bucket_and_do_nothing_else(garage: Garage) -> None:
    key, secret = SECRETS["S3_ACCESS_KEY_ID"], SECRETS["S3_SECRET_ACCESS_KEY"]
    client = client_of(garage, key, secret)
    site = {"IndexDocument": {"Suffix": "index.html"}}
    calls: list[Callable[[], object]] = [
        lambda: client.create_bucket(Bucket="another"),
        lambda: client.delete_bucket(Bucket="media"),
        lambda: client.put_bucket_website(Bucket="media", WebsiteConfiguration=site),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    with pytest.raises(ClientError):
        client_of(garage, key, "0" * 64).head_bucket(Bucket="media")


def test_a_known_access_key_without_its_secret_writes_nothing(garage: Garage) -> None:
    """What MinIO's last release lets happen, sent past the proxy."""
    at = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    scope = f"{SECRETS['S3_ACCESS_KEY_ID']}/{at[:8]}/us-east-1/s3/aws4_request"
    names = "host;x-amz-content-sha256;x-amz-date"
    claims = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={scope.replace('/', '%2F')}"
    claims += f"&X-Amz-Date={at}&X-Amz-Expires=600&X-Amz-SignedHeaders=host"
    forged = f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={names},Signature={'0' * 64}"
    streamed = {"x-amz-date": at, "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
    body = b"4\r\nevil\r\n0\r\n\r\n"
    url = f"{garage.url}/media/videos/stolen"
    snowball = {"x-amz-meta-snowball-auto-extract": "true"}
    with httpx.Client(trust_env=False) as client:
        for target, headers in (
            (url, {**streamed, "Authorization": forged}),
            (url, {**streamed, "Authorization": forged, **snowball}),
            (f"{url}?{claims}", streamed),
            (f"{url}?{claims}&X-Amz-Signature={'0' * 64}", streamed),
            (url, streamed),
        ):
            answer = client.put(target, content=body, headers=headers)
            assert answer.status_code in (400, 403), answer.text
    mine = client_of(garage, SECRETS["S3_ACCESS_KEY_ID"], SECRETS["S3_SECRET_ACCESS_KEY"])
    assert "Contents" not in mine.list_objects_v2(Bucket="media", Prefix="videos/stolen")


def test_another_key_takes_the_place_of_the_former(garage: Garage) -> None:
    another = {"S3_ACCESS_KEY_ID": f"GK{'ab' * 12}", "S3_SECRET_ACCESS_KEY": "cd" * 32}
    try:
        assert garage.prepare(**another).returncode == 0
        client_of(garage, *another.values()).head_bucket(Bucket="media")
        former = client_of(garage, SECRETS["S3_ACCESS_KEY_ID"], SECRETS["S3_SECRET_ACCESS_KEY"])
        with pytest.raises(ClientError):
            former.head_bucket(Bucket="media")
    finally:
        assert garage.prepare().returncode == 0


def test_a_key_with_another_secret_is_told(garage: Garage) -> None:
    refused = garage.prepare(S3_SECRET_ACCESS_KEY="ef" * 32)
    assert refused.returncode == 1
    assert "make S3_ACCESS_KEY_ID anew" in refused.stderr
