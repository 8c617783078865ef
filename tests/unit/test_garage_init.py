"""What `garage-init` asks of Garage; tests/integration/test_garage.py does so on a real one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from deploy.garage_init import Admin, prepare
from tests.composition import PROJECT, SECRETS, read_composition

KEY, SECRET = SECRETS["S3_ACCESS_KEY_ID"], SECRETS["S3_SECRET_ACCESS_KEY"]


class Recorded(Admin):
    """An admin API that knows one bucket or none, and some keys by their secrets."""

    def __init__(self, keys: Mapping[str, str], holders: Mapping[str, set[str]] | None) -> None:
        super().__init__("http://nowhere.invalid", "token")
        self.keys = dict(keys)
        self.rights = None if holders is None else {key: set(may) for key, may in holders.items()}

    def get(self, endpoint: str, **query: str) -> Any:
        if endpoint == "GetKeyInfo":
            secret = self.keys.get(query["id"])
            return secret and {"accessKeyId": query["id"], "secretAccessKey": secret}
        assert (endpoint, query) == ("GetBucketInfo", {"globalAlias": "media"})
        return None if self.rights is None else self._bucket()

    def post(self, endpoint: str, body: Mapping[str, Any]) -> Any:
        if endpoint == "ImportKey":
            self.keys[body["accessKeyId"]] = body["secretAccessKey"]
            return {}
        if endpoint == "CreateBucket":
            assert body == {"globalAlias": "media"}
            self.rights = {}
            return self._bucket()
        assert self.rights is not None
        assert body["bucketId"] == "of-media"
        held = self.rights.setdefault(body["accessKeyId"], set())
        named = {right for right, told in body["permissions"].items() if told}
        if endpoint == "DenyBucketKey":
            held -= named
        else:
            assert endpoint == "AllowBucketKey"
            held |= named
        return self._bucket()

    def _bucket(self) -> dict[str, Any]:
        assert self.rights is not None
        return {"id": "of-media", "keys": [{"accessKeyId": key} for key in self.rights]}


@pytest.mark.parametrize(
    ("keys", "holders"),
    [
        ({}, None),
        ({KEY: SECRET}, {}),
        ({KEY: SECRET}, {KEY: {"read", "write", "owner"}}),
        ({"GKformer": "x", KEY: SECRET}, {"GKformer": {"read", "write", "owner"}, KEY: set()}),
    ],
)
def test_one_key_may_read_and_write_and_no_other_may_anything(
    keys: dict[str, str], holders: dict[str, set[str]] | None
) -> None:
    admin = Recorded(keys, holders)
    for _ in range(2):
        prepare(admin, "media", KEY, SECRET)
    assert admin.keys[KEY] == SECRET
    assert admin.rights is not None
    assert {key: may for key, may in admin.rights.items() if may} == {KEY: {"read", "write"}}


def test_a_key_that_has_another_secret_stops_it() -> None:
    with pytest.raises(SystemExit, match="make S3_ACCESS_KEY_ID anew"):
        prepare(Recorded({KEY: "another"}, None), "media", KEY, SECRET)


def test_it_gets_the_variables_that_it_reads() -> None:
    text = (PROJECT / "deploy" / "garage_init.py").read_text()
    wanted = set(re.findall(r'env\["(\w+)"\]', text))
    given = read_composition().services["garage-init"].environment
    assert wanted == set(given)
