"""`ledger keys`: made, listed, rotated and revoked, and shown once."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from api.auth.api_keys import hash_secret
from cli.settings import Settings
from tests.harness import engine_of

from .conftest import Done, Run

KEY = re.compile(r"lk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


Keys = Callable[..., Awaitable[Done]]


@pytest.fixture
def keys(run: Run) -> Keys:
    """Runs `ledger keys …`, with lines wide enough for its table."""

    async def run_keys(*arguments: str) -> Done:
        return await run("keys", *arguments, COLUMNS="200")

    return run_keys


async def made(keys: Keys, *arguments: str) -> dict[str, Any]:
    """The key that a command prints as JSON."""
    done = await keys(*arguments, "--json")
    assert done.status == 0, done.err
    key: dict[str, Any] = done.json
    return key


async def listed(keys: Keys) -> dict[str, dict[str, Any]]:
    """All keys by prefix."""
    return {key["prefix"]: key for key in (await made(keys, "list"))["keys"]}


async def test_a_key_is_printed_once_and_only_its_hash_is_kept(
    keys: Keys, settings: Settings
) -> None:
    created = await keys("create", "--name", "shop", "--scope", "orders:write")
    assert created.status == 0
    assert KEY.fullmatch(created.out.strip())
    _, prefix, secret = created.out.strip().split("_", 2)
    for done in await keys("list"), await keys("list", "--json"):
        assert prefix in done.out
        assert secret not in done.out + done.err
    engine = engine_of(settings, "api")
    async with engine.connect() as connection:
        row = (await connection.exec_driver_sql("SELECT * FROM api_keys")).one()
    await engine.dispose()
    assert hash_secret(secret) in row
    assert not [cell for cell in row if secret in str(cell)]


async def test_a_key_has_the_scopes_customer_and_expiry_it_was_made_with(keys: Keys) -> None:
    customer = str(uuid4())
    asked = ("--scope", "orders:write", "--scope", "orders:read", "--customer", customer)
    key = await made(keys, "create", "--name", "ann", *asked, "--expires-in-days", "7")
    shown = (await listed(keys))[key["prefix"]]
    assert {name: key[name] for name in shown} == shown
    assert shown["scopes"] == ["orders:read", "orders:write"]
    assert shown["customer_id"] == customer
    assert shown["state"] == "active"
    assert shown["expires_at"] > shown["created_at"]


async def test_revoking_again_keeps_the_first_revocation(keys: Keys) -> None:
    key = await made(keys, "create", "--name", "ann", "--scope", "admin")
    first = await made(keys, "revoke", key["prefix"])
    assert first["state"] == "revoked"
    assert await made(keys, "revoke", key["prefix"]) == first
    assert (await listed(keys))[key["prefix"]] == first


async def test_rotation_makes_another_secret_for_the_same_client(keys: Keys) -> None:
    old = await made(keys, "create", "--name", "ann", "--scope", "admin")
    new = await made(keys, "rotate", old["prefix"])
    newer = await made(keys, "rotate", new["prefix"], "--overlap-s", "3600")
    assert len({old["key"], new["key"], newer["key"]}) == 3
    assert old["client"] == new["client"] == newer["client"]
    assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
    states = {prefix: key["state"] for prefix, key in (await listed(keys)).items()}
    assert states == {old["prefix"]: "revoked", new["prefix"]: "active", newer["prefix"]: "active"}


async def test_a_rotated_key_lives_as_long_as_the_one_before(keys: Keys) -> None:
    life = ("--expires-in-days", "7")
    old = await made(keys, "create", "--name", "ann", "--scope", "admin", *life)
    new = await made(keys, "rotate", old["prefix"])
    longer = await made(keys, "rotate", new["prefix"], "--expires-in-days", "30")
    assert [days(key) for key in (old, new, longer)] == [7, 7, 30]


def days(key: dict[str, Any]) -> int:
    life = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    return life.days


async def test_a_life_that_no_calendar_has_is_refused_in_the_products_own_words(
    keys: Keys,
) -> None:
    old = await made(keys, "create", "--name", "ann", "--scope", "admin")
    for arguments in (
        ("create", "--name", "ann", "--scope", "admin", "--expires-in-days", "999999999999"),
        ("rotate", old["prefix"], "--expires-in-days", "3000000"),
    ):
        done = await keys(*arguments)
        assert done.status == 2
        assert "is over 36500, which is a hundred years" in done.said_one_sentence()
    done = await keys("rotate", old["prefix"], "--overlap-s", "999999999999999999")
    assert done.status == 2
    assert "is over 31622400, which is a year" in done.said_one_sentence()


async def test_a_key_of_an_earlier_release_that_outlives_the_calendar_is_listed_and_rotated(
    keys: Keys, settings: Settings
) -> None:
    old = await made(keys, "create", "--name", "ann", "--scope", "admin")
    engine = engine_of(settings, "migrate")
    async with engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET expires_at_us = %s", (2**62,))
    await engine.dispose()
    assert (await keys("list")).status == 0
    assert (await listed(keys))[old["prefix"]]["expires_at"] == "9999-12-31T23:59:59Z"
    assert days(await made(keys, "rotate", old["prefix"])) == 36_500


async def test_an_unknown_or_revoked_key_is_refused_in_one_sentence(keys: Keys) -> None:
    key = await made(keys, "create", "--name", "ann", "--scope", "admin")
    await made(keys, "revoke", key["prefix"])
    for arguments in (("revoke", "nobody"), ("rotate", "nobody"), ("rotate", key["prefix"])):
        done = await keys(*arguments)
        assert (done.status, done.out) == (1, "")
        assert done.said_one_sentence().startswith("✗")


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "ann"),
        ("create", "--scope", "admin"),
        ("create", "--name", "", "--scope", "admin"),
        ("create", "--name", "x" * 101, "--scope", "admin"),
        ("create", "--name", "ann", "--scope", "everything"),
        ("create", "--name", "ann", "--scope", "admin", "--customer", "ann"),
        ("create", "--name", "ann", "--scope", "admin", "--expires-in-days", "0"),
        ("create", "--name", "ann", "--scope", "admin", "--expires-in-days", "36501"),
        ("create", "--name", "a\x1b[2Jn", "--scope", "admin"),
    ],
)
async def test_invalid_options_make_no_key(keys: Keys, arguments: tuple[str, ...]) -> None:
    done = await keys(*arguments)
    assert (done.status, done.out) == (2, "")
    assert await listed(keys) == {}
