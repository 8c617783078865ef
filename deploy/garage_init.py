"""Make Garage's bucket, and the key that may read and write it and do nothing else.

It may run any number of times. A new key takes the right of the former ones. Standard library only:
`docker-compose.yml` runs it in Backlot's image.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

OPENER = build_opener(ProxyHandler({}))
TIMEOUT_SECONDS = 30.0
USE = {"read": True, "write": True}
OWNER = {"owner": True}
ALL = {**USE, **OWNER}


class Admin:
    """Garage's admin API, version 2: "Administration API" in Garage's manual."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = url, {"Authorization": f"Bearer {token}"}

    def get(self, endpoint: str, **query: str) -> Any:
        """Return the answer, None where there is no such thing. Raise HTTPError and URLError."""
        try:
            return self._call(f"{endpoint}?{urlencode(query)}", None)
        except HTTPError as error:
            if error.code != 404:
                raise
            return None

    def post(self, endpoint: str, body: Mapping[str, object]) -> Any:
        """Return the answer. Raise HTTPError and URLError."""
        return self._call(endpoint, json.dumps(body).encode())

    def _call(self, path: str, body: bytes | None) -> Any:
        request = Request(f"{self._url}/v2/{path}", body, self._headers)  # noqa: S310
        with OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)


def prepare(admin: Admin, bucket: str, key: str, secret: str) -> None:
    """Bring the bucket and its keys into the state that is wanted. Exit where a key is taken."""
    known = admin.get("GetKeyInfo", id=key, showSecretKey="true")
    if known is None:
        admin.post("ImportKey", {"accessKeyId": key, "secretAccessKey": secret, "name": "backlot"})
    elif known["secretAccessKey"] != secret:
        sys.exit(f"the key {key} has another secret there: make S3_ACCESS_KEY_ID anew, too")
    found = admin.get("GetBucketInfo", globalAlias=bucket)
    found = found or admin.post("CreateBucket", {"globalAlias": bucket})
    for holder in found["keys"]:
        mine = holder["accessKeyId"] == key
        change = {"bucketId": found["id"], "accessKeyId": holder["accessKeyId"]}
        admin.post("DenyBucketKey", {**change, "permissions": OWNER if mine else ALL})
    change = {"bucketId": found["id"], "accessKeyId": key}
    admin.post("AllowBucketKey", {**change, "permissions": USE})


if __name__ == "__main__":
    env = os.environ
    prepare(
        Admin(env["GARAGE_ADMIN_URL"], env["GARAGE_ADMIN_TOKEN"]),
        env["S3_BUCKET"],
        env["S3_ACCESS_KEY_ID"],
        env["S3_SECRET_ACCESS_KEY"],
    )
