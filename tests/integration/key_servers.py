"""Vault's transit engine and AWS KMS as far as Backlot speaks with them, over HTTP on loopback.

What they encrypt is really encrypted (AES-256-GCM), by keys that never leave them.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.of-these-tests-only"
ACCESS_KEY_ID = "AKIDOFTHESETESTSONLY"
NAME, NAMESPACE = "backlot", "teams/video"

Answer = tuple[int, Any]


class KeyServer:
    """A server of keys; `fault` is what it answers in place of everything, `silent` that it does
    not answer at all."""

    def __init__(self) -> None:
        self.url = ""
        self.fault: Answer | None = None
        self.silent = False
        self.keys = {NAME: [AESGCM(os.urandom(32))]}
        self.asked: list[str] = []
        self.ended = Event()

    def rotate(self, name: str = NAME) -> None:
        """Make a new version of a key; the older ones still decrypt."""
        self.keys.setdefault(name, []).append(AESGCM(os.urandom(32)))

    def answer(self, path: str, headers: Any, body: dict[str, Any]) -> Answer:
        raise NotImplementedError


def _sealed(versions: list[AESGCM], text: bytes, about: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + versions[-1].encrypt(nonce, text, about)


class VaultServer(KeyServer):
    """`POST /v1/<mount>/encrypt|decrypt/<key>`, with a token and a namespace."""

    mount = "transit"
    namespace: str | None = None

    def answer(self, path: str, headers: Any, body: dict[str, Any]) -> Answer:
        match = re.fullmatch(r"/v1/([\w/]+)/(encrypt|decrypt)/([\w.-]+)", path)
        if match is None or match[1] != self.mount:
            return 404, {"errors": [f'no handler for route "{path}". route entry not found.']}
        if headers["X-Vault-Token"] != TOKEN or headers["X-Vault-Namespace"] != self.namespace:
            return 403, {"errors": ["permission denied"]}
        about = b64decode(body.get("associated_data", ""))
        versions = self.keys.get(match[3])
        if versions is None:
            return 400, {"errors": ["encryption key not found"]}
        if match[2] == "encrypt":
            text = _sealed(versions, b64decode(body["plaintext"]), about)
            told = f"vault:v{len(versions)}:{b64encode(text).decode()}"
            return 200, {"data": {"ciphertext": told, "key_version": len(versions)}}
        found = re.fullmatch(r"vault:v(\d+):(.+)", body["ciphertext"])
        if found is None:
            return 400, {"errors": ["invalid ciphertext: no prefix"]}
        text = b64decode(found[2])
        if len(text) < 28:
            return 400, {"errors": ["invalid ciphertext length"]}
        try:
            plain = versions[int(found[1]) - 1].decrypt(text[:12], text[12:], about)
        except (InvalidTag, IndexError):
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": b64encode(plain).decode()}}


class KmsServer(KeyServer):
    """`POST /` with the targets TrentService.Encrypt and .Decrypt, for one access key."""

    def answer(self, path: str, headers: Any, body: dict[str, Any]) -> Answer:
        if f"Credential={ACCESS_KEY_ID}/" not in headers.get("Authorization", ""):
            return _aws("UnrecognizedClientException", "The security token is invalid.")
        versions = self.keys.get(body["KeyId"])
        if versions is None:
            return _aws("NotFoundException", f"Key {body['KeyId']} does not exist")
        about = json.dumps(body["EncryptionContext"], sort_keys=True).encode()
        if headers["X-Amz-Target"] == "TrentService.Encrypt":
            text = _sealed(versions, b64decode(body["Plaintext"]), about)
            return 200, {"CiphertextBlob": b64encode(text).decode(), "KeyId": body["KeyId"]}
        blob = b64decode(body["CiphertextBlob"])
        for version in versions:
            try:
                plain = version.decrypt(blob[:12], blob[12:], about)
            except (InvalidTag, ValueError):
                continue
            return 200, {"Plaintext": b64encode(plain).decode(), "KeyId": body["KeyId"]}
        return _aws("InvalidCiphertextException", "")


def _aws(code: str, message: str) -> Answer:
    return 400, {"__type": code, "message": message}


@contextmanager
def serving(server: KeyServer) -> Iterator[None]:
    """Answer at `server.url` for the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(self.headers.get("X-Amz-Target") or self.path)
            if server.silent:
                server.ended.wait()
                return
            status, told = server.fault or server.answer(self.path, self.headers, json.loads(body))
            text = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.ended.set()
        listener.shutdown()
        thread.join()
        listener.server_close()
