"""`ledger keys`: made, listed, rotated and revoked, and shown once."""

import asyncio
import json
import os
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from api.auth.api_keys import hash_secret
from cli.settings import Settings
from tests.harness import engine_of, environment

KEY = re.compile(r"lk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


async def keys(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """The exit status and output of `ledger keys ...`."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("ledger"),
        "keys",
        *arguments,
        env=os.environ | environment(settings) | {"COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, output.decode(), errors.decode()


async def made(settings: Settings, *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    status, output, errors = await keys(settings, *arguments, "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


async def listed(settings: Settings) -> dict[str, dict[str, Any]]:
    """All keys by prefix."""
    return {key["prefix"]: key for key in (await made(settings, "list"))["keys"]}


async def test_a_key_is_printed_once_and_only_its_hash_is_kept(settings: Settings) -> None:
    status, output, _ = await keys(settings, "create", "--name", "shop", "--scope", "orders:write")
    assert status == 0
    assert KEY.fullmatch(output.strip())
    _, prefix, secret = output.strip().split("_", 2)
    for shown in await keys(settings, "list"), await keys(settings, "list", "--json"):
        assert prefix in shown[1]
        assert secret not in shown[1] + shown[2]
    engine = engine_of(settings, "api")
    async with engine.connect() as connection:
        row = (await connection.exec_driver_sql("SELECT * FROM api_keys")).one()
    await engine.dispose()
    assert hash_secret(secret) in row
    assert not [cell for cell in row if secret in str(cell)]


async def test_a_key_has_what_was_asked_for(settings: Settings) -> None:
    customer = str(uuid4())
    asked = ("--scope", "orders:write", "--scope", "orders:read", "--customer", customer)
    key = await made(settings, "create", "--name", "ann", *asked, "--expires-in-days", "7")
    shown = (await listed(settings))[key["prefix"]]
    assert {name: key[name] for name in shown} == shown
    assert shown["scopes"] == ["orders:read", "orders:write"]
    assert shown["customer_id"] == customer
    assert shown["state"] == "active"
    assert shown["expires_at"] > shown["created_at"]


async def test_a_revoked_key_stays_revoked_since_then(settings: Settings) -> None:
    key = await made(settings, "create", "--name", "ann", "--scope", "admin")
    first = await made(settings, "revoke", key["prefix"])
    assert first["state"] == "revoked"
    assert await made(settings, "revoke", key["prefix"]) == first
    assert (await listed(settings))[key["prefix"]] == first


async def test_rotation_gives_the_same_client_another_secret(settings: Settings) -> None:
    old = await made(settings, "create", "--name", "ann", "--scope", "admin")
    new = await made(settings, "rotate", old["prefix"])
    newer = await made(settings, "rotate", new["prefix"], "--overlap-s", "3600")
    assert len({old["key"], new["key"], newer["key"]}) == 3
    assert old["client"] == new["client"] == newer["client"]
    assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
    states = {prefix: key["state"] for prefix, key in (await listed(settings)).items()}
    assert states == {old["prefix"]: "revoked", new["prefix"]: "active", newer["prefix"]: "active"}


async def test_a_rotated_key_lives_as_long_as_the_one_before(settings: Settings) -> None:
    life = ("--expires-in-days", "7")
    old = await made(settings, "create", "--name", "ann", "--scope", "admin", *life)
    new = await made(settings, "rotate", old["prefix"])
    longer = await made(settings, "rotate", new["prefix"], "--expires-in-days", "30")
    assert [days(key) for key in (old, new, longer)] == [7, 7, 30]


def days(key: dict[str, Any]) -> int:
    life = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    return life.days


async def test_what_cannot_be_done_is_told_in_one_sentence(settings: Settings) -> None:
    key = await made(settings, "create", "--name", "ann", "--scope", "admin")
    await made(settings, "revoke", key["prefix"])
    for arguments in (("revoke", "nobody"), ("rotate", "nobody"), ("rotate", key["prefix"])):
        status, output, errors = await keys(settings, *arguments)
        assert (status, output) == (1, "")
        assert len(errors.strip().splitlines()) == 1
        assert errors.startswith("✗")


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
    ],
)
async def test_a_key_that_cannot_be_made(settings: Settings, arguments: tuple[str, ...]) -> None:
    status, output, _ = await keys(settings, *arguments)
    assert (status, output) == (2, "")
    assert await listed(settings) == {}
