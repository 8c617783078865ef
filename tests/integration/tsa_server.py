"""A time-stamp server of its own on loopback: OpenSSL signs, with certificates made on the spot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support import requires

CONFIGURATION = """
[tsa]
default_tsa = own
[own]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


@dataclass
class TsaServer:
    """Where it answers, whom its clients have to trust, and how it misbehaves.

    `answer` replaces each answer; `asked` are the requests that came.
    """

    url: str
    certificates: Path
    asked: list[bytes]
    answer: bytes | None = None


def _certificate(
    name: str, key: EllipticCurvePrivateKey, issuer: str, signs: EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
    )
    if name != issuer:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(signs, SHA256())


def make_authority(folder: Path) -> Path:
    """Write what signs into the folder, and return the file with the root's certificate."""
    root, own = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
    certificates = {
        "root.pem": _certificate("a root", root, "a root", root),
        "tsa.pem": _certificate("a time-stamp server", own, "a root", root),
    }
    for name, certificate in certificates.items():
        (folder / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    key = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "tsa.key").write_bytes(key)
    (folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=folder))
    (folder / "serial").write_text("01\n")
    return folder / "root.pem"


@contextmanager
def tsa_server(folder: Path) -> Iterator[TsaServer]:
    """Serve on a free port for as long as the block runs; the files of it lie in the folder."""
    openssl = requires("openssl")
    server = TsaServer("", make_authority(folder), [])

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.append(asked)
            answer = server.answer or _sign(openssl, folder, asked)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.url = f"http://127.0.0.1:{http.server_port}/"
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def _sign(openssl: str, folder: Path, asked: bytes) -> bytes:
    query = folder / "query.tsq"
    query.write_bytes(asked)
    asks = ["-config", folder / "tsa.cnf", "-queryfile", query]
    signs = ["-signer", folder / "tsa.pem", "-inkey", folder / "tsa.key"]
    command = [openssl, "ts", "-reply", *map(str, asks + signs)]
    return subprocess.run(command, check=True, capture_output=True).stdout
