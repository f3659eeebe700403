"""Find RabbitMQ and MariaDB or MySQL on this machine, or install them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.localstack import DEPLOY, StackRefused

INSTALL_TIMEOUT_S = 900
BREW = tuple(
    f"{root}/{place}"
    for root in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
    for place in ("sbin", "bin", "opt/rabbitmq/sbin", "opt/mariadb/bin", "opt/mysql/bin")
)
# Debian's /usr/sbin/rabbitmq-server switches to the user rabbitmq and its own log files, so the
# script behind it comes first; /usr/sbin is not on the PATH of an ordinary user.
PLACES = ("/usr/lib/rabbitmq/bin", *BREW, "/usr/local/sbin", "/usr/sbin", "/usr/bin")

RABBITMQ_PACKAGES = ("rabbitmq-server",)
DATABASE_PACKAGES = ("mariadb-server-core", "mariadb-client-core")


@dataclass(frozen=True, slots=True)
class Binaries:
    """The servers' executables; `database_install` is None for MySQL, which initializes itself."""

    rabbitmq_server: Path
    erl: Path
    epmd: Path
    database: Path
    database_install: Path | None


def find_binaries(places: tuple[str, ...] = PLACES) -> Binaries | None:
    """The executables, or None while one is missing; MariaDB wins over MySQL where both exist."""
    path = os.pathsep.join((*places, os.environ.get("PATH", os.defpath)))
    rabbitmq_server = _find("rabbitmq-server", path)
    erl, epmd = _find("erl", path), _find("epmd", path)
    mariadb, install = _find("mariadbd", path), _find("mariadb-install-db", path)
    mysql = _find("mysqld", path)
    if not (rabbitmq_server and erl and epmd):
        return None
    if mariadb and install:
        return Binaries(rabbitmq_server, erl, epmd, mariadb, install)
    # Debian's MariaDB is also called mysqld, and that one can't initialize itself.
    if mysql and not mariadb:
        return Binaries(rabbitmq_server, erl, epmd, mysql, None)
    return None


def ensure_binaries(say: Callable[[str], None]) -> Binaries:
    """The executables, installed first if need be; raises StackRefused naming the remedy."""
    found = find_binaries()
    if found:
        return found
    command = install_command()
    say("installing RabbitMQ and MariaDB with apt (once)")
    _install(command, "RabbitMQ and MariaDB", remedy())
    found = find_binaries()
    if not found:
        raise StackRefused(f"`{' '.join(command)}` did not bring RabbitMQ and MariaDB: {remedy()}")
    return found


def install_command() -> list[str]:
    """The command that installs both servers; raises StackRefused where only a person can."""
    packages = (*RABBITMQ_PACKAGES, *DATABASE_PACKAGES)
    return _apt_command(packages, "RabbitMQ and MariaDB (or MySQL)", remedy())


def install_packages(*packages: str) -> None:
    """Install Debian packages that tests need; raises StackRefused naming the remedy."""
    what = " and ".join(packages)
    by_hand = f"install {what} with your package manager"
    _install(_apt_command(packages, what, by_hand), what, by_hand)


def _apt_command(packages: tuple[str, ...], what: str, by_hand: str) -> list[str]:
    script = ["sh", str(DEPLOY / "apt-install.sh"), *packages]
    if not shutil.which("apt-get"):
        raise StackRefused(f"{what} are needed: {by_hand}")
    if os.geteuid() == 0:
        return script
    if shutil.which("sudo") and _succeeds(["sudo", "-n", "true"]):
        return ["sudo", "-n", *script]
    raise StackRefused(
        f"{what} are needed and installing them needs root: {by_hand}, then start again"
    )


def remedy() -> str:
    """What to type on this system to get both servers."""
    if sys.platform == "darwin":
        return "run `brew install rabbitmq mariadb`"
    if shutil.which("apt-get"):
        packages = " ".join((*RABBITMQ_PACKAGES, *DATABASE_PACKAGES))
        return f"run `sudo apt-get install --no-install-recommends {packages}`"
    if shutil.which("dnf"):
        return "run `sudo dnf install rabbitmq-server mariadb-server`"
    return "install rabbitmq-server and mariadb-server with your package manager"


def _install(command: list[str], what: str, by_hand: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own script)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StackRefused(f"apt took over {INSTALL_TIMEOUT_S} s: {by_hand}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise StackRefused(f"apt could not install {what} ({last}): {by_hand}")


def _find(name: str, path: str) -> Path | None:
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def _succeeds(command: list[str]) -> bool:
    done = subprocess.run(  # noqa: S603 (our own command)
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode == 0
