"""Passwords: made once, read by their owner only, given to the broker as hashes."""

import base64
import json
import os
import re
import stat
from pathlib import Path

import pytest

from cli.localstack import secrets
from cli.settings import AMQP_ROLES, DB_ROLES


def modes(directory: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_passwords_outlive_a_restart_and_each_account_has_one_of_its_own(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path / "secrets")
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    secrets.create_secrets(tmp_path / "secrets")
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == first
    assert {f"db_{role}" for role in DB_ROLES} | {f"amqp_{role}" for role in AMQP_ROLES} <= set(
        first
    )
    assert len(set(first.values())) == len(first)


def test_no_other_user_reads_a_secret_or_lists_them(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    secrets.create_secrets(directory)
    secrets.write_definitions(directory, "ledger")
    secrets.write_bootstrap(directory, "ledger")
    assert modes(directory) == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_broker_gets_hashes_that_fit_the_passwords(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    definitions = json.loads(secrets.write_definitions(tmp_path, "ledger").read_text())
    for user in definitions["users"]:
        password = secrets.read_secret(tmp_path, user["name"].replace("ledger_", "amqp_"))
        salt = base64.b64decode(user["password_hash"])[:4]
        assert secrets.hash_password(password, salt) == user["password_hash"]
        assert password not in json.dumps(definitions)


def test_a_hash_is_as_rabbitmq_documents_it() -> None:
    documented = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    assert secrets.hash_password("test12", bytes.fromhex("908DC60A")) == documented


def test_there_is_no_guest_and_no_administrator(tmp_path: Path) -> None:
    secrets.create_secrets(tmp_path)
    users = json.loads(secrets.write_definitions(tmp_path, "ledger").read_text())["users"]
    assert {user["name"] for user in users} == {f"ledger_{role}" for role in AMQP_ROLES}
    assert {user["name"]: user["tags"] for user in users if user["tags"]} == {
        "ledger_monitor": ["management"]
    }


@pytest.mark.parametrize("role", ["api", "writer", "projector", "monitor"])
@pytest.mark.parametrize("foreign", ["ledger.inbox", "ledger.submitted", "ledger.parking"])
def test_only_migrate_may_declare_the_topology(role: str, foreign: str) -> None:
    configure, _, _ = secrets.PERMISSIONS[role]
    assert not re.search(configure, foreign)


def test_only_the_writer_reads_the_inbox_and_nobody_writes_past_the_exchange() -> None:
    others = {role: rights for role, rights in secrets.PERMISSIONS.items() if role != "migrate"}
    assert [role for role, (_, _, read) in others.items() if re.search(read, "ledger.inbox")] == [
        "writer"
    ]
    # The monitor's right makes the broker tell it the depth: it can read no exchange to bind.
    assert others.pop("monitor")[::2] == (secrets.NOTHING, secrets.NOTHING)
    assert not any(re.search(write, "ledger.inbox") for _, write, _ in others.values())


def test_a_container_reads_the_passwords_of_its_own_role_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: owners.update({path.name: (uid, gid)}))
    secrets.hand_out(tmp_path, "ledger", "ledger")
    migrate = secrets.USER_IDS["migrate"]
    for role, user_id in secrets.USER_IDS.items():
        assert owners[f"db_{role}"] == owners[f"amqp_{role}"] == (user_id, migrate)
    assert owners["definitions.json"] == (secrets.SERVER_USER_ID, migrate)
    by_group = {path.name for path in tmp_path.iterdir() if path.stat().st_mode & stat.S_IRGRP}
    assert by_group == {*(f"db_{role}" for role in DB_ROLES), "snapshot_key"}
    by_all = {path.name for path in tmp_path.iterdir() if path.stat().st_mode & stat.S_IRWXO}
    # With it snapshots are told from forged ones; the database lets only the writer add any.
    assert by_all == {"snapshot_key"}
