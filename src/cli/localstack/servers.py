"""The two private servers: directories, configuration and commands, all below one home."""

import getpass
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cli.localstack import DEPLOY, StackRefused
from cli.localstack.install import Binaries
from cli.localstack.ports import accepts, amqp_answers, choose_ports, sql_answers
from cli.localstack.secrets import (
    DEFINITIONS,
    PRIVATE,
    create_secrets,
    read_secret,
    write_bootstrap,
    write_definitions,
)
from cli.localstack.supervisor import Program, telling_line
from ledger.runtime.files import write_atomically

PORTS = (
    "LEDGER_AMQP_PORT",
    "LEDGER_DB_PORT",
    "LEDGER_EPMD_PORT",
    "LEDGER_AMQP_DIST_PORT",
    "LEDGER_WRITER_METRICS_PORT",
    "LEDGER_PROJECTOR_METRICS_PORT",
)
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
INITIALIZE_TIMEOUT_S = 300.0
# RabbitMQ hands its directory to a shell unescaped, Erlang ends at letters outside Latin-1, and
# MariaDB cuts a path after 511 bytes.
_plain_name = re.compile(r"[A-Za-z0-9/._+,@=~% -]{1,200}").fullmatch
_rabbitmq_version = re.compile(r"rabbitmq(?:_server-|/)(\d+)\.(\d+)").search
_rabbitmq_4 = re.compile(r"rabbitmq_4\.(\d+)\.0").findall
_flag_of_3_13 = re.compile(r"\bmessage_containers\b").search
RABBITMQ_4 = (4, 0)


@dataclass(frozen=True, slots=True)
class ServerPrograms:
    """What `prepare_servers` made. epmd must answer first, or the broker starts one of its own."""

    home: Path
    secrets_dir: Path
    ports: dict[str, int]
    epmd: Program
    broker: Program
    database: Program

    def close(self) -> None:
        """Remove the links that the servers were started with; they must have ended."""
        for directory in (self.home, self.secrets_dir):
            _link(directory).unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """The settings of a process that uses these servers."""
        return {
            "LEDGER_HOME": str(self.home),
            "LEDGER_SECRETS_DIR": str(self.secrets_dir),
            "LEDGER_AMQP_HOST": "127.0.0.1",
            "LEDGER_DB_HOST": "127.0.0.1",
            **{name: str(port) for name, port in self.ports.items()},
        }


def prepare_servers(
    home: Path, binaries: Binaries, secrets_dir: Path, vhost: str, schema: str
) -> ServerPrograms:
    """Write passwords, ports, configuration and, the first time, the data directory."""
    create_secrets(secrets_dir)
    ports = choose_ports(home, PORTS)
    write_definitions(secrets_dir, vhost)
    bootstrap = write_bootstrap(secrets_dir, schema)
    plain_home = plain_path(home)
    epmd, broker = prepare_rabbitmq(plain_home, plain_path(secrets_dir), ports, binaries)
    database = prepare_database(plain_home, bootstrap, ports["LEDGER_DB_PORT"], binaries)
    return ServerPrograms(home, secrets_dir, ports, epmd, broker, database)


def plain_path(directory: Path) -> Path:
    """The directory or, where its name is not for every server, a link with a short ASCII name.

    Raises StackRefused where somebody else has made what the link would lie in.
    """
    if _plain_name(str(directory)):
        return directory
    link = _link(directory)
    holder = link.parent
    holder.mkdir(mode=0o700, exist_ok=True)
    status = holder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StackRefused(f"{holder} is not a directory for you alone: remove it, or set TMPDIR")
    link.unlink(missing_ok=True)
    link.symlink_to(directory)
    return link


def _link(directory: Path) -> Path:
    temporary = tempfile.gettempdir()
    holder = temporary if _plain_name(temporary) else "/tmp"  # noqa: S108 (checked to be ours)
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(holder) / f"ledger-{os.geteuid()}" / name


def prepare_rabbitmq(
    home: Path, secrets_dir: Path, ports: dict[str, int], binaries: Binaries
) -> tuple[Program, Program]:
    """Write the configuration below `home/rabbitmq`; returns the programs epmd and rabbitmq."""
    base = home / "rabbitmq"
    _refuse_other_rabbitmq(base, binaries)
    for name in ("data", "log", "conf.d"):
        (base / name).mkdir(parents=True, exist_ok=True)
    _make_private(base)
    cookie_file = base / ".erlang.cookie"
    if not cookie_file.exists():
        write_atomically(cookie_file, read_secret(secrets_dir, "erlang_cookie").encode(), 0o400)
    # With new or other secrets it stays the one that the data belongs to: a node of another name
    # would start with an empty inbox.
    cookie = cookie_file.read_text()
    (base / "enabled_plugins").write_text("[].\n")
    (base / "advanced.config").write_text("[].\n")
    (base / "rabbitmq.conf").write_text(
        (DEPLOY / "rabbitmq.conf").read_text()
        + f"\nlisteners.tcp.default = 127.0.0.1:{ports['LEDGER_AMQP_PORT']}\n"
        + f"load_definitions = {secrets_dir / DEFINITIONS}\n"
    )
    # Both see nothing of the caller's environment, which may configure another broker.
    erlang = {
        "HOME": str(base),
        "PATH": f"{binaries.erl.parent}:{SYSTEM_PATH}",
        "LANG": "C.UTF-8",
        "ERL_EPMD_PORT": str(ports["LEDGER_EPMD_PORT"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    broker_environment = erlang | {
        # The node's name is the broker's own, and the same after its directory was moved.
        "RABBITMQ_NODENAME": f"ledger-{hashlib.sha256(cookie.encode()).hexdigest()[:12]}@localhost",
        "RABBITMQ_MNESIA_BASE": str(base / "data"),
        "RABBITMQ_LOG_BASE": str(base / "log"),
        "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(base / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(base / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(base / "rabbitmq.pid"),
        "RABBITMQ_DIST_PORT": str(ports["LEDGER_AMQP_DIST_PORT"]),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        # The schedulers share the processors with the database and our own processes.
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        # The start script then becomes the broker, so signals and exit status are the broker's own.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
    # What the operator, and `cli.policies`, speak to this broker with.
    environment = [f"{name}={value}" for name, value in broker_environment.items()]
    command = ["env", "-i", *environment, str(binaries.rabbitmq_server.with_name("rabbitmqctl"))]
    write_atomically(
        base / "rabbitmqctl", f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n'.encode(), 0o700
    )
    epmd = Program(
        "epmd",
        (str(binaries.epmd),),
        erlang,
        lambda: accepts(ports["LEDGER_EPMD_PORT"]),
    )
    broker = Program(
        "rabbitmq",
        (str(binaries.rabbitmq_server),),
        broker_environment,
        lambda: amqp_answers(ports["LEDGER_AMQP_PORT"]),
    )
    return epmd, broker


def _refuse_other_rabbitmq(base: Path, binaries: Binaries) -> None:
    """Raise StackRefused where this broker can't read the data; untouched, it stays readable.

    The data names the features that it uses: https://www.rabbitmq.com/docs/feature-flags. The flags
    of RabbitMQ 4 are named for its releases, and it needs all of those of 3.13.
    """
    # Debian's and Homebrew's directories have the version in their names.
    found = _rabbitmq_version(str(binaries.rabbitmq_server.resolve()))
    version = (int(found[1]), int(found[2])) if found else RABBITMQ_4
    for flags in base.glob("data/*-feature_flags") if found else ():
        used = flags.read_text()
        made = max((int(minor) for minor in _rabbitmq_4(used)), default=0)
        if version >= RABBITMQ_4 and not _flag_of_3_13(used):
            made_by, remedy = "before 3.13", "start it with the RabbitMQ that made it, or 3.13"
        elif _rabbitmq_4(used) and version < (4, made):
            made_by, remedy = f"4.{made}", "install that one again"
        else:
            continue
        raise StackRefused(
            f"RabbitMQ {version[0]}.{version[1]} can't read the data of RabbitMQ {made_by} in"
            f" {base}: {remedy}; docs/how-to/upgrade-servers.md has the way to another one"
        )


def _refuse_other_database(base: Path, binaries: Binaries) -> None:
    """Raise StackRefused where the data was made by the other database."""
    for mark, maker in (("aria_log_control", "MariaDB"), ("mysql.ibd", "MySQL")):
        server = "MariaDB" if binaries.database_install else "MySQL"
        if maker != server and (base / "data" / mark).exists():
            raise StackRefused(
                f"{server} can't read the data of {maker} in {base}: install {maker} again, or"
                " bring the ledger over as docs/how-to/upgrade-servers.md has it"
            )


def _make_private(base: Path) -> None:
    """Take the rights of group and others from what an earlier release, or umask, let them read."""
    if base.stat().st_mode & 0o077 == 0:
        return
    for path in base.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    base.chmod(0o700)  # last: where this was interrupted it begins again


def prepare_database(home: Path, bootstrap: Path, port: int, binaries: Binaries) -> Program:
    """Make the data directory at the first start, write the configuration; returns the program."""
    base = home / "database"
    # A server that starts removes what it takes for left behind in its tmpdir, so none is shared.
    (base / "tmp").mkdir(parents=True, exist_ok=True)
    _make_private(base)
    _refuse_other_database(base, binaries)
    if not (base / "data").exists():
        _initialize(base, binaries)
    # root could log in without a password by the server's socket, so the account is locked.
    lock = "ALTER USER 'root'@'localhost' ACCOUNT LOCK;\n"
    write_atomically(base / "init.sql", (bootstrap.read_text() + lock).encode(), PRIVATE)
    settings = {
        "datadir": _quoted(base / "data"),
        "tmpdir": _quoted(base / "tmp"),
        "init-file": _quoted(base / "init.sql"),
        "pid-file": _quoted(base / "database.pid"),
        # Relative to the data directory: the path of a socket has 107 characters at most.
        "socket": "database.sock",
        "bind-address": "127.0.0.1",
        "port": str(port),
    }
    if binaries.database_install is None:
        # MySQL ends where its default, a directory that only its full package makes, is missing.
        settings["secure-file-priv"] = "NULL"
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    configuration = f"{(DEPLOY / 'mysql.cnf').read_text()}\n{lines}"
    write_atomically(base / "my.cnf", configuration.encode(), PRIVATE)
    return Program(
        "mariadb" if binaries.database_install else "mysql",
        (str(binaries.database), f"--defaults-file={base / 'my.cnf'}", *_user()),
        # The modes of what it makes; it takes no notice of its umask.
        {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "UMASK": "0600", "UMASK_DIR": "0700"},
        lambda: sql_answers(port),
    )


def _initialize(base: Path, binaries: Binaries) -> None:
    """Fill a new data directory and put it in place when it's complete, not before."""
    draft = base / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if binaries.database_install is None:
        command = [str(binaries.database), "--no-defaults", "--initialize-insecure", *_user()]
    else:
        command = [
            str(binaries.database_install),
            "--no-defaults",
            "--skip-test-db",
            "--skip-name-resolve",
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={getpass.getuser()}",
        ]
    done = subprocess.run(  # noqa: S603 (our own command)
        [*command, f"--datadir={draft}"],
        env=os.environ | {"TMPDIR": str(base / "tmp")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INITIALIZE_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        (base / "initialize.log").write_text(done.stdout + done.stderr)
        said = telling_line(done.stdout + done.stderr)
        raise StackRefused(
            f"{binaries.database.name} could not make its data directory ({said}): mend that and"
            f" start again; {base.resolve() / 'initialize.log'} has all of it"
        )
    draft.rename(base / "data")


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _user() -> tuple[str, ...]:
    # Either server refuses to run as root unless it's told to.
    return ("--user=root",) if os.geteuid() == 0 else ()
