"""Who may do what: one guard that every request passes before its handler.

API keys and tokens come as `Authorization: Bearer` (RFC 6750) and in no other way: logs, proxies
and caches know that header as one to hide.
"""

import asyncio
import ipaddress
from typing import Final
from uuid import UUID

from starlette.requests import Request
from starlette.types import Scope as HttpScope

from api.auth.api_keys import (
    START,
    ApiKeyCache,
    ApiKeyParts,
    KeysUnavailable,
    StoredApiKey,
    parse_api_key,
)
from api.auth.principal import ANYBODY, Principal, Scope, known_scopes
from api.auth.rate_limit import Client, RateLimit, RequestShare
from api.auth.tokens import BadToken, Tokens
from api.http.middleware import PRINCIPAL
from api.http.problems import Problem
from ledger.runtime.cache import BoundedDict

REALM: Final = 'Bearer realm="ledger"'
# Keys of a request's ASGI scope; not there where auth is off.
CREDENTIAL: Final = "ledger.credential"
# How often the API key or token of a stream is checked again.
CHECK_EVERY_S: Final = 1.0
MAX_VERIFIED: Final = 10_000


class Exposed(Exception):
    """Requests without an API key would be taken from other machines, too."""


def refuse_exposed(host: str, auth: str) -> None:
    """Raises Exposed where an API that asks nobody for a key would listen beyond loopback."""
    if auth != "off" or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False  # another name may lead anywhere
    if not is_loopback:
        raise Exposed(
            f"LEDGER_AUTH is off and LEDGER_API_HOST is {host}, so anybody there could order and"
            " pay in: set LEDGER_AUTH=required and make an API key with `ledger keys create`, or"
            " LEDGER_API_HOST=127.0.0.1"
        )


class Guard:
    """Admits requests, or raises the Problem that says why not."""

    def __init__(self, api_keys: ApiKeyCache, tokens: Tokens | None, rate_limit: RateLimit) -> None:
        self._api_keys = api_keys
        self._tokens = tokens
        self._rate_limit = rate_limit
        # By the whole key: to check a secret takes longer than all the rest of `admit`.
        self._verified = BoundedDict[str, tuple[StoredApiKey, Principal]](MAX_VERIFIED)

    async def admit(self, scope: HttpScope, required: Scope, *, own: bool) -> RequestShare:
        """Check who sent a request for an operation; the request runs inside what is returned.

        `own`: the operation is open to a key of one customer, too, for that customer.
        """
        credential = _bearer(scope)
        principal = self._verified_principal(credential) or await self._principal(credential)
        if not principal.may(required):
            raise Problem(
                "missing-scope",
                f"the API key or token lacks the scope {required}",
                headers={
                    "WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{required}"',
                },
            )
        if principal.customer_id is not None:
            if not own:
                raise Problem(
                    "bound-key",
                    "this is not for an API key or token of one customer",
                    headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope"'},
                )
            path_id: str | None = scope["path_params"].get("customer_id")
            if path_id is not None and path_id.lower() != str(principal.customer_id):
                raise unknown_customer(path_id[:100])
        scope[PRINCIPAL] = principal
        scope[CREDENTIAL] = (self, credential)
        return self._rate_limit.request(principal.submitter)

    async def run(self) -> None:
        """Keep what is known of API keys up to date, for as long as the process runs."""
        await self._api_keys.run()

    async def credential_ended(self, credential: str) -> None:
        """Return within CHECK_EVERY_S after an API key or a token is known to have ended."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                await self._principal(credential)
            except Problem as problem:
                # A key that can't be checked while the database is away has not ended.
                if problem.kind == "bad-key":
                    return

    def holder(self, scope: HttpScope) -> Principal | None:
        """Who sent a request, as far as that is known without a look-up; nobody is refused."""
        try:
            credential = _bearer(scope)
            if not credential.startswith(START):
                return self._token_principal(credential)
            parts = parse_api_key(credential)
            api_key = self._api_keys.copied(parts.prefix) if parts else None
            return self._key_principal(parts, api_key)
        except Problem:
            return None

    async def _principal(self, credential: str) -> Principal:
        if not credential.startswith(START):
            return self._token_principal(credential)
        parts = parse_api_key(credential)
        api_key = None
        if parts:
            api_key = self._api_keys.copied(parts.prefix)
            if api_key is None:
                try:
                    api_key = await self._api_keys.get(parts.prefix)
                except KeysUnavailable as error:
                    raise Problem("keys-unavailable", str(error)) from error
        return self._key_principal(parts, api_key)

    def _token_principal(self, token: str) -> Principal:
        if self._tokens is None:
            raise _bad_credential("this is not an API key")
        try:
            return self._tokens.principal(token)
        except BadToken as error:
            raise _bad_credential(f"the token can't be used: {error}") from None

    def _key_principal(self, parts: ApiKeyParts | None, api_key: StoredApiKey | None) -> Principal:
        # One answer for an unknown prefix and a wrong secret: prefixes stand in logs.
        if parts is None or api_key is None or not api_key.has_secret(parts.secret):
            raise _bad_credential("there is no such API key")
        if reason := api_key.ended(self._api_keys.now_us()):
            raise _bad_credential(f"the API key {api_key.prefix} is {reason}")
        scopes = known_scopes(api_key.scopes)
        principal = Principal(f"key:{api_key.client}", scopes, api_key.customer_id)
        self._verified.renew(str(parts), (api_key, principal))
        return principal

    def _verified_principal(self, credential: str) -> Principal | None:
        """The holder of an API key that was verified against the row that the copy has now."""
        api_key, principal = self._verified.get(credential, (None, None))
        if (
            api_key is None
            or self._api_keys.copied(api_key.prefix) is not api_key
            or api_key.ended(self._api_keys.now_us())
        ):
            return None
        return principal


def _bearer(scope: HttpScope) -> str:
    """The API key or token of a request, which has exactly one; raises Problem."""
    headers: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not headers:
        raise Problem(
            "no-key",
            "send an API key as `Authorization: Bearer lk_…`",
            headers={"WWW-Authenticate": REALM},
        )
    scheme, _, credential = headers[0].partition(b" ")
    if len(headers) > 1 or scheme.lower() != b"bearer" or not credential.isascii():
        raise _bad_credential("send one API key, as `Authorization: Bearer lk_…`")
    return credential.decode().strip()


def _bad_credential(detail: str) -> Problem:
    # RFC 6750, 3.1: `invalid_token` stands for expired, revoked, malformed and unknown alike.
    headers = {"WWW-Authenticate": f'{REALM}, error="invalid_token"'}
    return Problem("bad-key", detail, headers=headers)


def principal_of(request: Request) -> Principal:
    """The sender of a request; ANYBODY where auth is off."""
    principal: Principal = request.scope.get(PRINCIPAL, ANYBODY)
    return principal


def client_of(guard: Guard | None, scope: HttpScope) -> Client:
    """Whose share a request is of: who sent it, or else the address it came from.

    The address is that of the connection, so behind a proxy all strangers have the same one.
    """
    principal: Principal | None = scope.get(PRINCIPAL)
    if principal is None and guard:
        # An operation that everybody may call; with a key it is still its holder's.
        principal = guard.holder(scope)
    if principal:
        return Client(principal.submitter, known=True)
    return Client((scope.get("client") or ("",))[0], known=False)


def require_customer(request: Request, customer_id: UUID) -> None:
    """Raises the Problem of a customer who does not exist, if the sender may not see this one."""
    if not principal_of(request).may_see(customer_id):
        raise unknown_customer(customer_id)


def unknown_customer(customer_id: UUID | str) -> Problem:
    """The Problem of a customer who does not exist, or whom the client may not know of."""
    return Problem("unknown-customer", f"there is no customer {customer_id}")


async def credential_ended(scope: HttpScope) -> None:
    """Return after the sender's API key or token is revoked or expires; never where auth is off."""
    if CREDENTIAL in scope:
        guard, credential = scope[CREDENTIAL]
        await guard.credential_ended(credential)
    else:
        await asyncio.Event().wait()
