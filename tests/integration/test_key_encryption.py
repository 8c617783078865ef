"""What wraps the keys of an installation: one contract for a file, a setting, Vault and KMS."""

from __future__ import annotations

import pickle
import secrets
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from infra import key_encryption
from infra.errors import OperatorError
from infra.key_encryption import (
    FileKey,
    GivenKey,
    KeyEncryption,
    KeyEncryptionFailed,
    KmsKey,
    VaultKey,
    WrongKey,
    key_encryption_of,
)
from infra.settings import load_settings
from tests.integration.key_servers import (
    ACCESS_KEY_ID,
    NAME,
    NAMESPACE,
    TOKEN,
    KmsServer,
    VaultServer,
    serving,
)
from tests.support import unused_port

KEY = secrets.token_bytes(32)
REGION = "eu-central-1"


@pytest.fixture
def vault_server() -> Iterator[VaultServer]:
    server = VaultServer()
    with serving(server):
        yield server


@pytest.fixture
def kms_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsServer]:
    credentials(monkeypatch)
    server = KmsServer()
    with serving(server):
        yield server


@pytest.fixture
def moto_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsKey]:
    """A key of an independent implementation of KMS."""
    credentials(monkeypatch)
    server = ThreadedMotoServer(port=unused_port(), verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        maker: Any = boto3.session.Session().client("kms", region_name=REGION, endpoint_url=url)
        yield KmsKey(maker.create_key()["KeyMetadata"]["KeyId"], REGION, url)
    finally:
        server.stop()


def credentials(monkeypatch: pytest.MonkeyPatch, key_id: str = ACCESS_KEY_ID) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-these-tests-only")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def of_vault(server: VaultServer, **changes: Any) -> VaultKey:
    return VaultKey(**{"address": server.url, "token": TOKEN, "path": NAME, **changes})


def of_kms(server: KmsServer, key: str = NAME) -> KmsKey:
    return KmsKey(key, REGION, server.url)


def file_key(tmp_path: Path) -> FileKey:
    made = FileKey(tmp_path / "key-encryption-key")
    made.make()
    return made


@pytest.fixture(params=["file", "setting", "vault", "kms", "moto"])
def kek(request: pytest.FixtureRequest, tmp_path: Path) -> KeyEncryption:
    """Each implementation of the port, with a key."""
    make: dict[str, Callable[[], KeyEncryption]] = {
        "file": lambda: file_key(tmp_path),
        "setting": lambda: GivenKey(secrets.token_hex(32)),
        "vault": lambda: of_vault(request.getfixturevalue("vault_server")),
        "kms": lambda: of_kms(request.getfixturevalue("kms_server")),
        "moto": lambda: request.getfixturevalue("moto_key"),
    }
    return make[request.param]()


class TestContract:
    def test_what_is_wrapped_comes_back(self, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, "persons")
        assert KEY not in wrapped
        assert kek.unwrap(wrapped, "persons") == KEY
        assert kek.wrap(KEY, "persons") != wrapped

    def test_a_key_of_one_purpose_is_none_of_another(self, kek: KeyEncryption) -> None:
        with pytest.raises(WrongKey):
            kek.unwrap(kek.wrap(KEY, "persons"), "lookup")

    def test_what_others_wrapped_is_refused_as_that(self, kek: KeyEncryption) -> None:
        for foreign in (GivenKey(secrets.token_hex(32)).wrap(KEY, "persons"), b"vault:v1:AAAA"):
            with pytest.raises(WrongKey):
                kek.unwrap(foreign, "persons")

    def test_it_can_be_handed_to_a_child(self, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, "persons")
        assert pickle.loads(pickle.dumps(kek)).unwrap(wrapped, "persons") == KEY

    def test_its_name_tells_nothing_of_it(self, kek: KeyEncryption) -> None:
        told = f"{kek.name} {kek!r}"
        assert TOKEN not in told
        assert not any(len(word) >= 64 for word in told.replace("/", " ").split())

    def test_making_it_again_changes_nothing(self, kek: KeyEncryption) -> None:
        wrapped = kek.wrap(KEY, "persons")
        kek.make()
        assert kek.unwrap(wrapped, "persons") == KEY


class TestFile:
    def test_only_its_owner_can_read_it(self, tmp_path: Path) -> None:
        file_key(tmp_path)
        (made,) = tmp_path.iterdir()
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert len(bytes.fromhex(made.read_text())) == 32

    def test_of_many_makers_one_wins(self, tmp_path: Path) -> None:
        path = tmp_path / "key-encryption-key"
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: FileKey(path).make(), range(32)))
        assert [each.name for each in tmp_path.iterdir()] == [path.name]

    @pytest.mark.parametrize("content", [b"", b"00" * 31, b"g" * 64, b"\xff\xfe"])
    def test_what_is_no_key_is_told(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "key-encryption-key"
        path.write_bytes(content)
        with pytest.raises(KeyEncryptionFailed, match="key-encryption-key"):
            FileKey(path).wrap(KEY, "persons")
        FileKey(path).make()
        assert path.read_bytes() == content

    def test_a_missing_one_is_not_made_by_asking(self, tmp_path: Path) -> None:
        missing = FileKey(tmp_path / "none")
        with pytest.raises(WrongKey, match="none is missing"):
            missing.unwrap(b"x" * 60, "persons")
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(KeyEncryptionFailed, match="can't be made: No such file"):
            FileKey(tmp_path / "none" / "key").make()


class TestVault:
    def test_another_mount_and_a_namespace(self, vault_server: VaultServer) -> None:
        vault_server.mount, vault_server.namespace = "teams/transit", NAMESPACE
        kek = of_vault(vault_server, path=f"teams/transit/{NAME}", namespace=NAMESPACE)
        assert kek.unwrap(kek.wrap(KEY, "persons"), "persons") == KEY

    def test_older_versions_of_the_key_still_unwrap(self, vault_server: VaultServer) -> None:
        kek = of_vault(vault_server)
        before = kek.wrap(KEY, "persons")
        vault_server.rotate()
        assert kek.unwrap(before, "persons") == KEY
        assert kek.wrap(KEY, "persons").startswith(b"vault:v2:")

    def test_a_key_of_another_name_is_another_key(self, vault_server: VaultServer) -> None:
        vault_server.rotate("other")
        wrapped = of_vault(vault_server).wrap(KEY, "persons")
        for path in ("other", "unknown"):
            with pytest.raises(WrongKey, match=f"key {path} of Vault has not wrapped"):
                of_vault(vault_server, path=path).unwrap(wrapped, "persons")

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"token": "stolen"}, r"refuses \(403, permission denied\): see VAULT_TOKEN"),
            ({"token": "nöt ascii"}, "Vault at"),
            ({"namespace": "others"}, "see VAULT_TOKEN"),
            ({"path": "elsewhere/key"}, r"refuses \(404, no handler .*: see VAULT_TRANSIT_KEY"),
            ({"address": "http://127.0.0.1:1"}, "does not answer .*: start it, or see VAULT_ADDR"),
            ({"ca_file": Path("/no/such/ca.pem")}, "does not answer"),
        ],
    )
    def test_what_is_wrong_is_one_line(
        self, vault_server: VaultServer, changes: dict[str, Any], told: str
    ) -> None:
        with pytest.raises(KeyEncryptionFailed, match=told) as caught:
            of_vault(vault_server, **changes).wrap(KEY, "persons")
        assert_is_one_line(caught.value)

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            ((503, {"errors": ["Vault is sealed"]}), r"refuses \(503, Vault is sealed\)"),
            ((500, b"<html>"), r"refuses \(500\)"),
            ((200, b"<html>"), "is no Vault: see VAULT_ADDR"),
            ((200, {"data": {}}), "is no Vault"),
            ((200, []), "is no Vault"),
        ],
    )
    def test_what_it_says_instead_is_told(
        self, vault_server: VaultServer, fault: tuple[int, Any], told: str
    ) -> None:
        vault_server.fault = fault
        with pytest.raises(KeyEncryptionFailed, match=told) as caught:
            of_vault(vault_server).unwrap(b"vault:v1:AAAA", "persons")
        assert_is_one_line(caught.value)

    def test_silence_is_an_answer(
        self, vault_server: VaultServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_encryption, "VAULT_ANSWER_SECONDS", 0.1)
        vault_server.silent = True
        with pytest.raises(KeyEncryptionFailed, match="does not answer"):
            of_vault(vault_server).wrap(KEY, "persons")


class TestKms:
    def test_older_material_of_the_key_still_unwraps(self, kms_server: KmsServer) -> None:
        kek = of_kms(kms_server)
        before = kek.wrap(KEY, "persons")
        kms_server.rotate()
        assert kek.unwrap(before, "persons") == KEY

    def test_another_key_has_not_wrapped_it(self, kms_server: KmsServer) -> None:
        kms_server.rotate("other")
        wrapped = of_kms(kms_server).wrap(KEY, "persons")
        with pytest.raises(WrongKey, match="key other of KMS has not wrapped"):
            of_kms(kms_server, "other").unwrap(wrapped, "persons")

    def test_an_unknown_key_is_told(self, kms_server: KmsServer) -> None:
        with pytest.raises(KeyEncryptionFailed, match=r"there is no such key: see KMS_KEY_ID"):
            of_kms(kms_server, "unknown").wrap(KEY, "persons")

    def test_refused_credentials_are_told(
        self, kms_server: KmsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        credentials(monkeypatch, "AKIDOFSOMEBODYELSE00")
        with pytest.raises(KeyEncryptionFailed, match="see the credentials of AWS") as caught:
            of_kms(kms_server).wrap(KEY, "persons")
        assert_is_one_line(caught.value)

    def test_missing_credentials_and_regions_are_told(
        self, kms_server: KmsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        nowhere = str(tmp_path / "none")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, nowhere)
        with pytest.raises(KeyEncryptionFailed, match="must specify a region"):
            KmsKey(NAME, None, kms_server.url).wrap(KEY, "persons")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(KeyEncryptionFailed, match="credentials"):
            of_kms(kms_server).wrap(KEY, "persons")

    @pytest.mark.parametrize(
        ("code", "remedy"), [(code, remedy) for code, remedy in key_encryption.KMS_REMEDIES.items()]
    )
    def test_each_refusal_has_its_remedy(
        self, kms_server: KmsServer, code: str, remedy: str
    ) -> None:
        kms_server.fault = (400, {"__type": code, "message": "no"})
        with pytest.raises(KeyEncryptionFailed, match=remedy.replace("(", r"\(")) as caught:
            of_kms(kms_server).unwrap(b"x" * 60, "persons")
        assert not isinstance(caught.value, WrongKey)

    def test_an_outage_and_silence_are_told(
        self, kms_server: KmsServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(key_encryption, "KMS_ATTEMPTS", 1)
        monkeypatch.setattr(key_encryption, "KMS_ANSWER_SECONDS", 0.1)
        kms_server.fault = (500, {"__type": "KMSInternalException", "message": "broke"})
        with pytest.raises(KeyEncryptionFailed, match="broke"):
            of_kms(kms_server).wrap(KEY, "persons")
        kms_server.silent = True
        with pytest.raises(KeyEncryptionFailed, match="can't be asked") as caught:
            of_kms(kms_server).wrap(KEY, "persons")
        assert_is_one_line(caught.value)


def assert_is_one_line(error: OperatorError) -> None:
    assert "\n" not in str(error)
    assert TOKEN not in str(error)


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "name"),
        [
            ({}, "/data/key-encryption-key"),
            ({"KEY_ENCRYPTION_KEY": secrets.token_hex(32)}, "KEY_ENCRYPTION_KEY"),
            (
                {"VAULT_TRANSIT_KEY": "k", "VAULT_ADDR": "https://v:8200", "VAULT_TOKEN": "t"},
                "vault:k",
            ),
            ({"KMS_KEY_ID": "alias/backlot", "KMS_REGION": REGION}, "kms:alias/backlot"),
            # Other programs' too, and no choice.
            ({"VAULT_ADDR": "https://v:8200", "VAULT_TOKEN": "t"}, "/data/key-encryption-key"),
        ],
    )
    def test_they_choose(self, given: dict[str, str], name: str) -> None:
        assert key_encryption_of(load_settings(given).keys, Path("/data")).name == name
        former = {f"OLD_{variable}": value for variable, value in given.items()}
        found = key_encryption_of(load_settings(former).former_keys, Path("/data")).name
        assert found == (f"OLD_{name}" if name == "KEY_ENCRYPTION_KEY" else name)

    def test_a_key_may_lie_in_a_file_with_an_end_of_line(self, tmp_path: Path) -> None:
        digits = secrets.token_hex(32)
        (tmp_path / "kek").write_text(f"{digits}\n")
        given = load_settings({"KEY_ENCRYPTION_KEY_FILE": str(tmp_path / "kek")}).keys
        wrapped = key_encryption_of(given, tmp_path).wrap(KEY, "persons")
        assert GivenKey(digits).unwrap(wrapped, "persons") == KEY
