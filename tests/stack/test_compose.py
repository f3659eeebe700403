"""Compose: the same configuration, no password, and commands that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from cli.localstack import DEPLOY, secrets
from cli.main import app
from cli.settings import Settings
from tests.private_servers import Servers

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text()


@pytest.mark.parametrize("name", ["rabbitmq.conf", "mysql.cnf"])
def test_compose_and_the_local_stack_share_their_configuration(servers: Servers, name: str) -> None:
    local = {"rabbitmq.conf": "rabbitmq/rabbitmq.conf", "mysql.cnf": "database/my.cnf"}[name]
    assert (servers.home / local).read_text().startswith((DEPLOY / name).read_text())
    assert f"./deploy/{name}:/etc/" in COMPOSE


def test_every_file_that_compose_mounts_exists() -> None:
    for name in re.findall(r"- \./(\S+?):", COMPOSE):
        assert (ROOT / name).is_file()


def test_every_command_of_compose_is_one_of_ours() -> None:
    commands = {command.name for command in app.registered_commands}
    used = set(re.findall(r"command: \[(\w+)[],]", COMPOSE))
    assert used == {"migrate", "api", "writer", "projector", "demo"} <= commands
    assert f"entrypoint: [python, -m, {secrets.__name__}]" in COMPOSE


def test_every_variable_that_compose_gives_a_process_is_a_setting() -> None:
    given = set(re.findall(r"\b(LEDGER_\w+):", COMPOSE))
    assert {"LEDGER_AUTH", "LEDGER_API_PORT"} < given
    assert given <= {f"LEDGER_{name.upper()}" for name in Settings.model_fields}


def test_no_password_is_in_any_file_of_the_deployment() -> None:
    for path in (ROOT / "compose.yaml", *DEPLOY.iterdir()):
        assert not re.search(r"PASS(WORD)?\s*[:=]\s*[^\s\"$]", path.read_text()), path


def test_each_role_runs_under_the_user_that_its_secrets_are_given_to() -> None:
    services = dict(re.findall(r"^  (\w+):\n((?:    .*\n)+)", COMPOSE, re.MULTILINE))
    for role, user_id in secrets.USER_IDS.items():
        assert f'user: "{user_id}:{user_id}"' in services[role]


def test_only_the_api_has_a_port_and_on_loopback() -> None:
    assert re.findall(r"ports: (.*)", COMPOSE) == ['["127.0.0.1:${LEDGER_API_PORT:-8000}:8000"]']


def test_who_comes_through_that_port_is_asked_for_a_key() -> None:
    assert re.findall(r"LEDGER_AUTH: (.*)", COMPOSE) == ["${LEDGER_AUTH:-required}"]


def test_make_alone_prints_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"run", "test", "check"} <= set(re.findall(r"^make (\w+)", done.stdout, re.MULTILINE))
