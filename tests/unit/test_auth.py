"""Tokens that prove somebody, and all the ways of not proving anything."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from domain.model import SystemActor
from infra.http.auth import (
    Authenticator,
    Identity,
    InvalidToken,
    RevokedTokens,
    make_authenticator,
    mint_token,
    token_id,
)
from infra.http.keys import OneKey, read_or_make_secret
from infra.settings import SettingsError, load_settings
from tests.real_inputs import RealInput, each
from tests.support import claims_at

SECRET = "a secret of at least thirty-two bytes"
ANOTHER = "another secret of thirty-two bytes and more"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def authenticator(**env: str) -> Authenticator:
    return make_authenticator(load_settings(env).auth, local_secret=SECRET)


def signed(claims: Mapping[str, Any], key: Any = SECRET, algorithm: str = "HS256") -> str:
    filled = {"sub": "alice", "exp": int(time.time()) + 60, **claims}
    present = {name: value for name, value in filled.items() if value is not None}
    return jwt.encode(present, key, algorithm=algorithm)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    encoded = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded.decode()


# Nothing that it refuses is remembered.
ORDINARY = authenticator()


def refusal(token: str, subject: Authenticator = ORDINARY) -> str:
    with pytest.raises(InvalidToken) as caught:
        subject.authenticate(token)
    return caught.value.reason


def test_a_minted_token_is_its_user() -> None:
    token = mint_token(SECRET, "alice", ["admin"], timedelta(minutes=1))
    identity = authenticator().authenticate(token)
    assert identity == Identity("alice", frozenset({"admin"}))
    assert identity.is_admin


def test_an_ordinary_viewer_is_no_operator() -> None:
    assert not authenticator().authenticate(mint_token(SECRET, "bob")).is_admin


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": None}, "token has no exp"),
        ({"sub": None}, "token has no sub"),
        ({"exp": 1}, "expired"),
        ({"exp": 1e400}, "malformed|seconds"),
        ({"nbf": int(time.time()) + 86_400}, "not valid yet"),
        ({"sub": ""}, "1 to 128"),
        ({"sub": "x" * 129}, "1 to 128"),
        ({"sub": "\ud800"}, "characters that can be seen"),
        ({"sub": 7}, "malformed"),
        ({"roles": "admin"}, "list of strings"),
        ({"roles": [1]}, "list of strings"),
    ],
)
def test_claims_that_prove_nothing(claims: dict[str, Any], reason: str) -> None:
    assert re.search(reason, refusal(signed(claims)))


@each("token_times")
def test_times_of_tokens(real: RealInput) -> None:
    token = signed(claims_at(real.text, time.time()))
    if real.right == "accepted":
        assert authenticator().authenticate(token).person == "alice"
    else:
        assert refusal(token)


@each("user_ids")
def test_user_ids(real: RealInput) -> None:
    if real.right == "accepted":
        assert authenticator().authenticate(signed({"sub": real.text})).person == real.text
    else:
        assert "characters that can be seen" in refusal(signed({"sub": real.text}))


def test_a_user_id_may_be_128_characters_of_any_script() -> None:
    assert authenticator().authenticate(signed({"sub": "é" * 128})).person == "é" * 128


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": "now", "exp": "now+3700"},
        {"exp": "now+3700"},
        {"iat": "now-3000", "exp": "now+900"},
        {"iat": "now+86400", "exp": "now+90000"},
        {"exp": 9e9},
    ],
)
def test_a_token_that_lives_too_long_is_refused(claims: dict[str, Any]) -> None:
    subject = authenticator(JWT_MAX_LIFETIME_SECONDS="3600")
    found = claims_at(json.dumps(claims), time.time())
    told = refusal(signed(found), subject)
    assert told.startswith("token is valid for longer than 3600 seconds")
    assert "JWT_MAX_LIFETIME_SECONDS" in told
    assert "get one for a shorter time" in told


@pytest.mark.parametrize(
    "claims",
    [
        {"iat": "now", "exp": "now+3600"},
        {"exp": "now+3600"},
        {"iat": "now+5", "exp": "now+3605"},
    ],
)
def test_a_token_may_live_as_long_as_is_allowed(claims: dict[str, Any]) -> None:
    subject = authenticator(JWT_MAX_LIFETIME_SECONDS="3600")
    subject.authenticate(signed(claims_at(json.dumps(claims), time.time())))


def test_without_a_setting_a_token_lives_a_week_at_most() -> None:
    authenticator().authenticate(mint_token(SECRET, "ann", ttl=timedelta(days=7)))
    assert "604800 seconds" in refusal(mint_token(SECRET, "ann", ttl=timedelta(days=8)))


@pytest.mark.parametrize(
    "name",
    [
        *SystemActor, "operator:root", "operator:", "system:sealing", "System",
        "\uff33\uff39\uff33\uff34\uff25\uff2d", "Operator:root", "operator\uff1aroot",
        "sys\u00adtem", " translation", "trans\u200blation",
    ],
)  # fmt: skip
def test_the_names_of_system_actors_can_not_come_from_a_token(name: str) -> None:
    told = refusal(signed({"sub": name}))
    assert "only parts of the system and operators at the command line have" in told
    assert "give this user another id" in told


@pytest.mark.parametrize("name", ["operators", "systematic", "translation-fan", "my:operator:x"])
def test_names_that_only_begin_alike_are_users(name: str) -> None:
    assert authenticator().authenticate(signed({"sub": name})).person == name


@pytest.mark.parametrize(
    ("identity", "kind"),
    [
        (Identity("ann", frozenset()), "user"),
        (Identity("ann", frozenset({"auditor", "service"})), "user"),
        (Identity("ann", frozenset({"moderator"})), "operator"),
        (Identity("ann", frozenset({"admin"})), "operator"),
        (Identity("0f" * 32, frozenset(), anonymous=True), "anonymous"),
    ],
)
def test_what_is_recorded_of_a_caller(identity: Identity, kind: str) -> None:
    assert identity.kind == kind


def revoked_at(subject: Authenticator, user: str, at: float) -> None:
    subject.revoke(RevokedTokens(users={user: at}))


def test_a_revoked_token_is_refused_although_it_is_remembered() -> None:
    subject = authenticator()
    token, other = mint_token(SECRET, "alice"), mint_token(SECRET, "alice")
    subject.authenticate(token)
    subject.revoke(RevokedTokens(tokens=frozenset({token_id(token)})))
    assert refusal(token, subject) == "token is revoked; get a new one"
    assert subject.authenticate(other).person == "alice"
    subject.revoke(RevokedTokens())
    assert subject.authenticate(token).person == "alice"


def test_all_tokens_of_a_user_are_revoked_up_to_a_moment(clock: Clock) -> None:
    subject = Authenticator(OneKey(SECRET, ["HS256"]), clock=clock)
    now = clock.now
    old = [signed({"iat": now - 60}), signed({"iat": now + 5}), signed({"iat": None})]
    for token in (*old, signed({"sub": "bob", "iat": now - 60})):
        subject.authenticate(token)
    revoked_at(subject, "alice", now)
    for token in old:
        assert "revoked" in refusal(token, subject)
    assert subject.authenticate(signed({"sub": "bob", "iat": now - 60})).person == "bob"
    clock.now += 15
    subject.authenticate(signed({"iat": clock.now, "exp": clock.now + 60}))
    for token in old:
        assert "revoked" in refusal(token, subject)


def test_a_token_from_the_future_does_not_outlive_a_revocation(clock: Clock) -> None:
    subject = Authenticator(OneKey(SECRET, ["HS256"]), clock=clock)
    ahead = signed({"iat": clock.now + 40})
    subject.authenticate(ahead)
    revoked_at(subject, "alice", clock.now)
    assert "revoked" in refusal(ahead, subject)


def test_a_token_that_is_revoked_while_it_is_verified_is_not_remembered() -> None:
    token = mint_token(SECRET, "alice")
    revoked = RevokedTokens(tokens=frozenset({token_id(token)}))

    class Meanwhile(RevokedTokens):
        def has(self, claims: Mapping[str, Any], person: str, now: float) -> bool:
            subject.revoke(revoked)
            return False

    subject = authenticator()
    subject.revoke(Meanwhile())
    subject.authenticate(token)
    assert subject.recall(token) is None
    assert "revoked" in refusal(token, subject)


def test_nobody_else_s_token_is_verified_again(clock: Clock) -> None:
    subject = counting(clock)
    tokens = {name: mint_token(SECRET, name) for name in ("alice", "bob", "cyd")}
    for token in tokens.values():
        subject.authenticate(token)
    revoked_at(subject, "alice", clock.now)
    users = {"alice": clock.now}
    subject.revoke(RevokedTokens(frozenset({token_id(tokens["bob"])}), users))
    recalled = {name for name, token in tokens.items() if subject.recall(token)}
    assert recalled == {"cyd"}
    assert CountingKeys.lookups == 3
    # What was issued to her since then stays, until there is news about her.
    clock.now += 20
    later = signed({"iat": clock.now, "exp": clock.now + 600})
    subject.authenticate(later)
    subject.revoke(RevokedTokens(frozenset(), users))
    assert subject.recall(later) is not None
    # By a clock that is ahead of the one that revokes.
    revoked_at(subject, "alice", clock.now - 15)
    assert subject.recall(later) is None


@pytest.mark.parametrize("jti", [7, ["a"], {"a": 1}, True])
def test_an_id_of_another_kind_is_an_invalid_token(jti: Any) -> None:
    subject = authenticator()
    subject.revoke(RevokedTokens(tokens=frozenset({"x"})))
    refusal(signed({"jti": jti}), subject)


def test_another_secret_is_refused() -> None:
    assert refusal(signed({}, ANOTHER)) == "signature does not match"


def test_unsigned_tokens_are_refused() -> None:
    assert refusal(signed({}, None, "none")) == "algorithm is not allowed"


def test_a_public_key_does_not_pass_as_a_secret() -> None:
    public = pem(RSA_KEY)
    subject = authenticator(JWT_PUBLIC_KEY=public)
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps({"sub": "a", "exp": 9e9}).encode()).rstrip(b"=")
    mac = jwt.get_algorithm_by_name("HS256").sign(header + b"." + body, public.encode())
    forged = b".".join([header, body, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()
    assert refusal(forged, subject) == "algorithm is not allowed"


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (EC_KEY, "ES256")])
def test_a_public_key_verifies(key: Any, algorithm: str) -> None:
    subject = authenticator(JWT_PUBLIC_KEY=pem(key).replace("\n", "\\n"))
    assert subject.authenticate(signed({}, key, algorithm)).person == "alice"
    assert refusal(signed({}), subject) == "algorithm is not allowed"


def test_an_unreadable_public_key_stops_the_start() -> None:
    broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    with pytest.raises(SettingsError, match="JWT_PUBLIC_KEY: is not a readable"):
        authenticator(JWT_PUBLIC_KEY=broken)


def test_a_key_for_other_algorithms_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="JWT_ALGORITHMS: JWT_PUBLIC_KEY verifies RS256 only"):
        authenticator(JWT_PUBLIC_KEY=pem(RSA_KEY), JWT_ALGORITHMS="ES256")


def test_issuer_and_audience_are_checked_when_configured() -> None:
    subject = authenticator(JWT_ISSUER="https://id.example", JWT_AUDIENCE="backlot")
    good = {"iss": "https://id.example", "aud": "backlot"}
    assert subject.authenticate(signed(good)).person == "alice"
    assert refusal(signed({**good, "iss": "elsewhere"}), subject) == "token is from another issuer"
    assert refusal(signed({**good, "aud": "shop"}), subject) == "token is for another audience"
    assert refusal(signed({"iss": good["iss"]}), subject) == "token has no aud"
    assert refusal(signed({"aud": good["aud"]}), subject) == "token has no iss"


def test_an_audience_is_ignored_when_none_is_configured() -> None:
    assert authenticator().authenticate(signed({"aud": "shop"})).person == "alice"


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_garbage_is_an_invalid_token_and_nothing_worse(token: str) -> None:
    refusal(token)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_a_header_of_any_shape_is_an_invalid_token(shape: Any) -> None:
    for header in (shape, {"alg": shape}, {"alg": "HS256", "crit": shape, "kid": shape}):
        encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
        refusal(f"{encoded}.e30.e30")


def test_deep_nesting_and_great_length_are_invalid_tokens() -> None:
    nested = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    refusal(f"{nested}.e30.e30")
    assert "longer than" in refusal("x" * 9000)


class CountingKeys(OneKey):
    lookups = 0

    def find(self, token: str) -> Any:
        CountingKeys.lookups += 1
        return super().find(token)


def counting(clock: Clock, remember: int = 4096) -> Authenticator:
    CountingKeys.lookups = 0
    return Authenticator(CountingKeys(SECRET, ["HS256"]), clock=clock, remember=remember)


def test_a_repeated_token_is_verified_once(clock: Clock) -> None:
    subject, token = counting(clock), mint_token(SECRET, "alice")
    assert subject.recall(token) is None
    assert len({subject.authenticate(token) for _ in range(5)}) == 1
    assert subject.recall(token) is not None
    assert CountingKeys.lookups == 1


def test_a_remembered_token_ends_when_it_expires(clock: Clock) -> None:
    subject, token = counting(clock), mint_token(SECRET, "alice", ttl=timedelta(seconds=30))
    subject.authenticate(token)
    clock.now += 31
    assert refusal(token, subject) == "token has expired"


def test_a_long_lived_token_is_verified_again_after_a_while(clock: Clock) -> None:
    subject, token = counting(clock), mint_token(SECRET, "alice", ttl=timedelta(days=1))
    subject.authenticate(token)
    clock.now += 301
    subject.authenticate(token)
    assert CountingKeys.lookups == 2


def test_the_memory_is_bounded_and_forgets_the_least_used(clock: Clock) -> None:
    subject = counting(clock, remember=2)
    one, two, three = (mint_token(SECRET, name) for name in ("one", "two", "three"))
    for token in (one, two, one, three):
        subject.authenticate(token)
    assert subject.recall(one) is not None
    assert subject.recall(two) is None


def test_an_invalid_token_is_not_remembered(clock: Clock) -> None:
    subject, token = counting(clock), mint_token(ANOTHER, "alice")
    for _ in range(2):
        refusal(token, subject)
    assert CountingKeys.lookups == 2


def test_minting_for_an_impossible_user_is_refused() -> None:
    with pytest.raises(InvalidToken, match="1 to 128"):
        mint_token(SECRET, "")


def test_the_local_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "jwt-secret"
    first = read_or_make_secret(path)
    assert len(first) >= 32
    assert read_or_make_secret(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["jwt-secret"]
