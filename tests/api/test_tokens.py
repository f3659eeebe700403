"""Tokens of an issuer: which are accepted, and that every way to forge one is refused."""

import base64
import hmac
import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from api.auth.principal import Principal, Scope
from api.auth.tokens import BadKeyFile, BadToken, Tokens, load_signing_keys

ISSUER, AUDIENCE = "https://issuer.example", "order-ledger"
PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
CUSTOMER = "43e8ff2f-5d48-498f-a569-ca2cf9f7fae3"


def claims(**changes: object) -> dict[str, object]:
    """The claims of a token that is accepted, with changes; None leaves one out."""
    usual = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": time.time() + 600,
        "scope": "orders:read openid",
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def signed(algorithm: str = "EdDSA", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), PRIVATE[algorithm], algorithm, headers)


def pem(key: Any) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    encoded: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, kind)
    return encoded


def tokens(tmp_path: Path, algorithm: str = "EdDSA") -> Tokens:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(PRIVATE[algorithm]))
    return Tokens(ISSUER, AUDIENCE, load_signing_keys(path))


def jwk(algorithm: str, **more: str) -> dict[str, Any]:
    coded = jwt.get_algorithm_by_name(algorithm).to_jwk(PRIVATE[algorithm].public_key())
    return {**json.loads(coded), **more}


def of_jwks(tmp_path: Path, *keys: dict[str, Any]) -> Tokens:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": keys}))
    return Tokens(ISSUER, AUDIENCE, load_signing_keys(path))


def coded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_token_names_the_submitter_and_its_scopes(tmp_path: Path, algorithm: str) -> None:
    principal = tokens(tmp_path, algorithm).principal(signed(algorithm))
    assert principal == Principal("jwt:ann", frozenset({Scope.ORDERS_READ}))


def test_a_token_may_be_bound_to_a_customer(tmp_path: Path) -> None:
    principal = tokens(tmp_path).principal(signed(customer_id=CUSTOMER))
    assert str(principal.customer_id) == CUSTOMER


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": None}, "claims"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "claims"),
        ({"exp": time.time() - 60}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "soon"}, "no token"),
        ({"nbf": time.time() + 3600}, "not valid yet"),
        ({"iat": time.time() + 3600}, "not valid yet"),
        ({"sub": None}, "claims"),
        ({"sub": ""}, "subject"),
        ({"sub": "x" * 300}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"scope": ["orders:read"]}, "scope"),
        ({"customer_id": "all"}, "customer_id"),
        ({"customer_id": ["x"]}, "customer_id"),
        ({"customer_id": 7}, "customer_id"),
        ({"customer_id": ""}, "customer_id"),
        ({"padding": "x" * 9000}, "too long"),
    ],
)
def test_a_token_with_wrong_claims_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadToken, match=why):
        tokens(tmp_path).principal(signed(**changes))


def test_a_customer_id_of_null_is_not_all_customers(tmp_path: Path) -> None:
    token = jwt.encode({**claims(), "customer_id": None}, PRIVATE["EdDSA"], "EdDSA")
    with pytest.raises(BadToken, match="customer_id"):
        tokens(tmp_path).principal(token)


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "NONE"])
def test_a_token_without_a_signature_is_refused(tmp_path: Path, algorithm: str) -> None:
    token = f"{coded({'alg': algorithm, 'typ': 'JWT'})}.{coded(claims())}."
    with pytest.raises(BadToken):
        tokens(tmp_path).principal(token)


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_an_hmac_over_the_public_key_is_refused(tmp_path: Path, algorithm: str) -> None:
    unsigned = f"{coded({'alg': 'HS256', 'typ': 'JWT'})}.{coded(claims())}"
    for secret in (pem(PRIVATE[algorithm]), pem(PRIVATE[algorithm]).strip()):
        mac = hmac.digest(secret, unsigned.encode(), sha256)
        token = f"{unsigned}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        with pytest.raises(BadToken, match="another algorithm"):
            tokens(tmp_path, algorithm).principal(token)


@pytest.mark.parametrize("algorithm", ["RS512", "PS256", "RS384"])
def test_another_algorithm_of_the_same_signing_key_is_refused(
    tmp_path: Path, algorithm: str
) -> None:
    token = jwt.encode(claims(), PRIVATE["RS256"], algorithm)
    with pytest.raises(BadToken, match="another algorithm"):
        tokens(tmp_path, "RS256").principal(token)


def test_the_signature_of_another_key_is_refused(tmp_path: Path) -> None:
    token = jwt.encode(claims(), ed25519.Ed25519PrivateKey.generate(), "EdDSA")
    with pytest.raises(BadToken, match="signature"):
        tokens(tmp_path).principal(token)


def test_a_key_in_the_token_itself_is_not_used(tmp_path: Path) -> None:
    stranger = ed25519.Ed25519PrivateKey.generate()
    own = json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(stranger.public_key()))
    token = jwt.encode(claims(), stranger, "EdDSA", {"jwk": own, "jku": "https://x.example"})
    with pytest.raises(BadToken, match="signature"):
        tokens(tmp_path).principal(token)


def test_an_unknown_critical_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadToken):
        tokens(tmp_path).principal(signed(headers={"crit": ["x"], "x": 1}))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "a.b.c.d.e",
        "é.é.é",
        "\x00",
        f"{coded([])}.{coded({})}.x",
        f"{coded({'alg': ['EdDSA']})}.{coded({})}.x",
        f"{coded({'alg': 'EdDSA', 'kid': {}})}.{coded({})}.x",
        base64.urlsafe_b64encode(b"[" * 6000).decode() + ".e30.x",
    ],
)
def test_text_that_is_no_token_is_refused(tmp_path: Path, token: str) -> None:
    with pytest.raises(BadToken):
        tokens(tmp_path).principal(token)


def test_the_reason_of_a_refusal_repeats_nothing_of_the_token(tmp_path: Path) -> None:
    token = signed(aud="my-private-audience")
    with pytest.raises(BadToken) as refused:
        tokens(tmp_path).principal(token)
    assert "my-private-audience" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_several_signing_keys_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    many = of_jwks(tmp_path, jwk("EdDSA", kid="one"), jwk("RS256", kid="two"))
    assert many.principal(signed("EdDSA", {"kid": "one"})).submitter == "jwt:ann"
    assert many.principal(signed("RS256", {"kid": "two"})).submitter == "jwt:ann"
    for headers in ({"kid": "three"}, {"kid": "two"}, {}):
        with pytest.raises(BadToken):
            many.principal(signed("EdDSA", headers))


def test_a_single_signing_key_needs_no_id(tmp_path: Path) -> None:
    assert of_jwks(tmp_path, jwk("ES256")).principal(signed("ES256", {"kid": "any"}))


def private_pem(key: Any) -> str:
    kind, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    encoded: bytes = key.private_bytes(serialization.Encoding.PEM, kind, none)
    return encoded.decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "{}",
        '{"keys": []}',
        '{"keys": [{}]}',
        '{"keys": 1}',
        json.dumps({"keys": [jwk("EdDSA"), jwk("RS256")]}),
        json.dumps({"keys": [jwk("EdDSA", kid="a"), jwk("RS256", kid="a")]}),
        json.dumps({"keys": [jwk("EdDSA", use="enc")]}),
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}),
        json.dumps(
            {"keys": [json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(PRIVATE["EdDSA"]))]}
        ),
        private_pem(PRIVATE["EdDSA"]),
        pem(rsa.generate_private_key(65537, 1024)).decode(),
        pem(ec.generate_private_key(ec.SECP384R1())).decode(),
    ],
)
def test_a_key_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(BadKeyFile, match="LEDGER_JWT_KEY_FILE"):
        load_signing_keys(path)


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadKeyFile):
        load_signing_keys(tmp_path / "none")
