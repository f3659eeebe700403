"""Who may do what: one guard that every request passes before its handler.

Keys and tokens come as `Authorization: Bearer` (RFC 6750) and in no other way: logs, proxies and
caches know that header as one to hide.
"""

import asyncio
import ipaddress
from contextlib import AbstractContextManager
from typing import Final

from starlette.types import Scope as HttpScope

from api.auth.api_keys import START, StoredKey, parts_of
from api.auth.key_cache import FRESH_S, Keyring, KeysUnavailable
from api.auth.principal import Principal, keep, unknown_customer
from api.auth.rate_limit import Limits
from api.auth.scopes import Scope, known_scopes
from api.auth.tokens import BadToken, Tokens
from api.problems import Problem
from ledger.runtime.timestamps import now_us

REALM: Final = 'Bearer realm="ledger"'


class Exposed(Exception):
    """Requests without keys are taken, from elsewhere too."""


def refuse_exposed(host: str, auth: str) -> None:
    """Raises Exposed where an API that asks nobody for a key would listen beyond loopback."""
    if auth == "off" and not _is_loopback(host):
        raise Exposed(
            f"LEDGER_AUTH is off and LEDGER_API_HOST is {host}, so anybody there could order and"
            " pay in: set LEDGER_AUTH=required and make a key with `ledger keys create`, or"
            " LEDGER_API_HOST=127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets a request in, or raises the Problem that says why not."""

    def __init__(self, keys: Keyring, tokens: Tokens | None, limits: Limits) -> None:
        self._keys = keys
        self._tokens = tokens
        self._limits = limits

    async def admit(
        self, scope: HttpScope, needed: Scope, *, own: bool
    ) -> AbstractContextManager[None]:
        """Check who asks for an operation that needs a scope; what it returns holds the request.

        `own`: who is bound to a customer may do it, for that customer.
        """
        token = _bearer(scope)
        principal = await self._principal(token)
        if not principal.may(needed):
            raise _forbidden(needed)
        if principal.customer_id is not None:
            _keep_to_own(scope, principal, own)
        keep(scope, principal, lambda: self._lapsed(token))
        return self._limits.request_of(principal.submitter)

    async def _lapsed(self, token: str) -> None:
        while True:
            await asyncio.sleep(FRESH_S)
            try:
                await self._principal(token)
            except Problem as problem:
                if problem.kind == "bad-key":
                    return

    async def _principal(self, token: str) -> Principal:
        if token.startswith(START):
            return await self._of_key(token)
        if self._tokens is None:
            raise unauthenticated("this is not a key")
        try:
            return self._tokens.principal(token)
        except BadToken as error:
            raise unauthenticated(f"the token can't be used: {error}") from None

    async def _of_key(self, token: str) -> Principal:
        parts = parts_of(token)
        key = await self._find(parts.prefix) if parts else None
        if parts is None or key is None or not key.opens(parts.secret):
            raise unauthenticated("there is no such key")
        if why := key.over(now_us()):
            raise unauthenticated(f"the key {key.prefix} is {why}")
        return Principal(f"key:{key.client}", known_scopes(key.scopes), key.customer_id)

    async def _find(self, prefix: str) -> StoredKey | None:
        try:
            return await self._keys.get(prefix)
        except KeysUnavailable as error:
            raise Problem("keys-unavailable", str(error)) from error


def _keep_to_own(scope: HttpScope, principal: Principal, own: bool) -> None:
    """Only what is marked as keeping to one customer, and of paths only that customer's."""
    if not own:
        raise Problem(
            "bound-key",
            "this is not for a key of one customer",
            headers={"WWW-Authenticate": f'{REALM}, error="insufficient_scope"'},
        )
    named: str | None = scope["path_params"].get("customer_id")
    if named is not None and named.lower() != str(principal.customer_id):
        raise unknown_customer(named[:100])


def _bearer(scope: HttpScope) -> str:
    """The token of the request, of which there may be one."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        raise Problem(
            "no-key",
            "send a key as `Authorization: Bearer lk_…`",
            headers={"WWW-Authenticate": REALM},
        )
    kind, _, token = given[0].partition(b" ")
    if len(given) > 1 or kind.lower() != b"bearer" or not token.isascii():
        raise unauthenticated("send one key, as `Authorization: Bearer lk_…`")
    return token.decode().strip()


def unauthenticated(detail: str) -> Problem:
    """The key or token proves nothing (RFC 6750, 3.1)."""
    return Problem(
        "bad-key",
        detail,
        headers={"WWW-Authenticate": f'{REALM}, error="invalid_token"'},
    )


def _forbidden(needed: Scope) -> Problem:
    return Problem(
        "missing-scope",
        f"the key lacks the scope {needed}",
        headers={
            "WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{needed}"',
        },
    )
