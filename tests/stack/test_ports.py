"""Ports: the same again where possible, and a clear word where not."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.localstack import StackRefused
from cli.localstack.ports import choose_ports, require_free

NAMES = ("LEDGER_ONE_PORT", "LEDGER_OTHER_PORT")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_restart_gets_the_same_ports(tmp_path: Path) -> None:
    assert choose_ports(tmp_path, NAMES) == choose_ports(tmp_path, NAMES)


def test_a_port_that_another_program_took_meanwhile_is_replaced(
    tmp_path: Path, listener: socket.socket
) -> None:
    taken = listener.getsockname()[1]
    (tmp_path / "stack.env").write_text(f"LEDGER_ONE_PORT={taken}\nLEDGER_OTHER_PORT={taken}\n")
    chosen = choose_ports(tmp_path, NAMES)
    assert taken not in chosen.values()
    assert len(set(chosen.values())) == len(NAMES)


def test_a_port_asked_for_is_taken_or_refused_but_never_replaced(
    tmp_path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_ONE_PORT", str(listener.getsockname()[1]))
    with pytest.raises(StackRefused, match="set LEDGER_ONE_PORT to a free port"):
        choose_ports(tmp_path, NAMES)
    monkeypatch.setenv("LEDGER_ONE_PORT", "many")
    with pytest.raises(StackRefused, match="LEDGER_ONE_PORT=many is not a port"):
        choose_ports(tmp_path, NAMES)


def test_an_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(StackRefused, match=r"can't listen on port 8000 of 192\.0\.2\.1"):
        require_free("LEDGER_API_PORT", 8000, "192.0.2.1")
