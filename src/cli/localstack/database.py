"""A private MariaDB or MySQL: its data directory, its configuration and its program."""

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from cli.localstack import DEPLOY, StackRefused
from cli.localstack.install import Binaries
from cli.localstack.programs import Program
from cli.localstack.secrets import write_private

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30
INITIALIZE_TIMEOUT_S = 120


def prepare_database(home: Path, bootstrap: Path, port: int, binaries: Binaries) -> Program:
    """Make the data directory at the first start, write the configuration; returns the program."""
    base = home / "database"
    # A server that starts removes what it takes for left behind in its tmpdir, so none is shared.
    (base / "tmp").mkdir(parents=True, exist_ok=True)
    if not (base / "data").exists():
        _initialize(base, binaries)
    # root could log in without a password by the server's socket, so the account is locked.
    lock = "ALTER USER 'root'@'localhost' ACCOUNT LOCK;\n"
    write_private(base / "init.sql", bootstrap.read_text() + lock)
    (base / "my.cnf").write_text(_configuration(base, port))
    (base / "my.cnf").chmod(0o600)
    return Program(
        "mariadb" if binaries.database_install else "mysql",
        (str(binaries.database), f"--defaults-file={base / 'my.cnf'}", *_user()),
        {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
        bare=True,
        stop_timeout_s=STOP_TIMEOUT_S,
    )


def _configuration(base: Path, port: int) -> str:
    # A path relative to the data directory: the path of a socket has 107 characters at most.
    local = {
        "datadir": _quoted(base / "data"),
        "tmpdir": _quoted(base / "tmp"),
        "init-file": _quoted(base / "init.sql"),
        "pid-file": _quoted(base / "database.pid"),
        "socket": "database.sock",
        "bind-address": "127.0.0.1",
        "port": str(port),
    }
    lines = (f"{name} = {value}" for name, value in local.items())
    return (DEPLOY / "mysql.cnf").read_text() + "\n" + "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _user() -> tuple[str, ...]:
    return ("--user=root",) if os.geteuid() == 0 else ()


def _initialize(base: Path, binaries: Binaries) -> None:
    """Fill a new data directory and put it in place when it's complete, not before."""
    draft = base / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    done = subprocess.run(  # noqa: S603 (our own command)
        _initialize_command(draft, binaries),
        env=os.environ | {"TMPDIR": str(base / "tmp")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INITIALIZE_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        (base / "initialize.log").write_text(done.stdout + done.stderr)
        raise StackRefused(
            f"{binaries.database.name} could not make its data directory: see "
            f"{base / 'initialize.log'}, mend that and start again"
        )
    draft.rename(base / "data")


def _initialize_command(data: Path, binaries: Binaries) -> list[str]:
    if binaries.database_install is None:
        mysqld = [str(binaries.database), "--no-defaults", "--initialize-insecure"]
        return [*mysqld, f"--datadir={data}", *_user()]
    return [
        str(binaries.database_install),
        "--no-defaults",
        f"--datadir={data}",
        "--skip-test-db",
        "--skip-name-resolve",
        "--auth-root-authentication-method=socket",
        f"--auth-root-socket-user={getpass.getuser()}",
    ]
