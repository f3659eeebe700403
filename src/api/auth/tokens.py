"""JSON Web Tokens (RFC 7519) of one issuer, checked as RFC 8725 advises.

A signing key has one algorithm, by its kind, and a token is only ever checked with that one:
neither `none` nor an HMAC over a public key can pass.
"""

import json
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from api.auth.principal import Principal, known_scopes
from ledger.eventlog.codec import MAX_SUBMITTER

# How far the issuer's clock may be off.
LEEWAY_S: Final = 30
MIN_RSA_BITS: Final = 2048
MAX_TOKEN: Final = 8 * 1024
REQUIRED: Final = ["iss", "aud", "exp", "sub"]

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


class BadKeyFile(Exception):
    """The file of the issuer's signing keys can't be used."""


class BadToken(Exception):
    """The token proves nothing; the message says why and repeats nothing of it."""


_REASONS: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidAlgorithmError: "it is signed with another algorithm",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: f"it must have the claims {', '.join(REQUIRED)}",
}


class Tokens:
    """The tokens of one issuer for one audience.

    `signing_keys` are by key id, "" where there is only one. Of a token the claims `sub`, `scope`
    (separated by spaces, RFC 8693) and `customer_id` are read.
    """

    def __init__(self, issuer: str, audience: str, signing_keys: dict[str, PublicKey]) -> None:
        self._issuer = issuer
        self._audience = audience
        self._signing_keys = signing_keys

    def principal(self, token: str) -> Principal:
        """The principal that the issuer vouches for; raises BadToken."""
        if len(token) > MAX_TOKEN:
            raise BadToken("the token is too long")
        claims = self._verified_claims(token)
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise BadToken("its scope must be one string")
        subject = claims["sub"]
        submitter = f"jwt:{subject}"
        if not subject or len(submitter) > MAX_SUBMITTER or not subject.isprintable():
            raise BadToken("its subject can't be recorded")
        customer_id = None
        # A claim that can't be read, null included, must not mean all customers.
        if "customer_id" in claims:
            try:
                customer_id = UUID(claims["customer_id"])
            except (ValueError, TypeError, AttributeError):
                raise BadToken("its customer_id is not a UUID") from None
        return Principal(submitter, known_scopes(scope.split()), customer_id)

    def _verified_claims(self, token: str) -> dict[str, Any]:
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid", ""))
            signing_key = self._signing_keys.get("") or self._signing_keys.get(key_id)
            if signing_key is None:
                raise BadToken("it is signed with a key that is not the issuer's")
            return jwt.decode(
                token,
                signing_key,
                algorithms=[algorithm_of(signing_key)],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
        except jwt.PyJWTError as error:
            raise BadToken(_REASONS.get(type(error), "it is no token of the issuer")) from None


def algorithm_of(key: PublicKey) -> str:
    """The only algorithm that a signing key is used with."""
    match key:
        case RSAPublicKey():
            return "RS256"
        case EllipticCurvePublicKey():
            return "ES256"
        case Ed25519PublicKey():
            return "EdDSA"


def load_signing_keys(path: Path) -> dict[str, PublicKey]:
    """The issuer's public keys from a PEM file or a JWKS file (RFC 7517); raises BadKeyFile."""
    unusable = f"LEDGER_JWT_KEY_FILE, {path}, can't be used"
    try:
        text = path.read_text()
        if not text.lstrip().startswith("{"):
            return {"": _accepted(load_pem_public_key(text.encode()))}
        entries = [jwk for jwk in json.loads(text)["keys"] if jwk.get("use", "sig") == "sig"]
        keys = {str(jwk.get("kid", "")): _accepted(jwt.PyJWK.from_dict(jwk).key) for jwk in entries}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, jwt.PyJWTError) as error:
        raise BadKeyFile(f"{unusable}: {error}") from error
    # Two with one `kid` have become one entry of the dict by now.
    if not keys or len(keys) != len(entries) or ("" in keys and len(keys) > 1):
        raise BadKeyFile(f"{unusable}: it must have a key, and each of several a `kid` of its own")
    return keys


def _accepted(key: object) -> PublicKey:
    if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    if isinstance(key, Ed25519PublicKey):
        return key
    raise ValueError(
        f"only public keys are taken: RSA of {MIN_RSA_BITS} bits or more, P-256, Ed25519"
    )
