"""A private RabbitMQ: its directories, its configuration and its two programs, broker and epmd."""

import hashlib
from pathlib import Path

from cli.localstack import DEPLOY
from cli.localstack.install import Binaries
from cli.localstack.programs import Program
from cli.localstack.secrets import DEFINITIONS, read_secret

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30


def prepare_rabbitmq(
    home: Path, secrets_dir: Path, ports: dict[str, int], binaries: Binaries
) -> tuple[Program, Program]:
    """Write the configuration below `home/rabbitmq`; returns the programs epmd and rabbitmq.

    With a `LEDGER_MANAGEMENT_PORT` the broker has its HTTP API, too.
    """
    base = home / "rabbitmq"
    for name in ("data", "log", "conf.d"):
        (base / name).mkdir(parents=True, exist_ok=True)
    _write_cookie(base, read_secret(secrets_dir, "erlang_cookie"))
    management = ports.get("LEDGER_MANAGEMENT_PORT")
    plugins = "rabbitmq_management" if management else ""
    (base / "enabled_plugins").write_text(f"[{plugins}].\n")
    (base / "advanced.config").write_text("[].\n")
    (base / "rabbitmq.conf").write_text(_configuration(secrets_dir / DEFINITIONS, ports))
    erlang = _erlang_environment(base, ports["LEDGER_EPMD_PORT"], binaries)
    epmd = Program("epmd", (str(binaries.epmd),), erlang, bare=True)
    broker = Program(
        "rabbitmq",
        (str(binaries.rabbitmq_server),),
        erlang | _broker_environment(base, node_name(secrets_dir), ports),
        bare=True,
        stop_timeout_s=STOP_TIMEOUT_S,
    )
    return epmd, broker


def node_name(secrets_dir: Path) -> str:
    """The Erlang node's name: the broker's own, and the same after its directory was moved."""
    cookie = read_secret(secrets_dir, "erlang_cookie")
    return f"ledger-{hashlib.sha256(cookie.encode()).hexdigest()[:12]}@localhost"


def _configuration(definitions: Path, ports: dict[str, int]) -> str:
    lines = [
        (DEPLOY / "rabbitmq.conf").read_text(),
        f"listeners.tcp.default = 127.0.0.1:{ports['LEDGER_AMQP_PORT']}",
        f"load_definitions = {definitions}",
    ]
    if "LEDGER_MANAGEMENT_PORT" in ports:
        lines += [
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {ports['LEDGER_MANAGEMENT_PORT']}",
        ]
    return "\n".join(lines) + "\n"


def _erlang_environment(base: Path, epmd_port: int, binaries: Binaries) -> dict[str, str]:
    return {
        "HOME": str(base),
        "PATH": f"{binaries.erl.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }


def _broker_environment(base: Path, node: str, ports: dict[str, int]) -> dict[str, str]:
    return {
        "RABBITMQ_NODENAME": node,
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


def _write_cookie(base: Path, cookie: str) -> None:
    path = base / ".erlang.cookie"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(cookie)
    path.chmod(0o400)
