"""Find RabbitMQ and MariaDB or MySQL on this machine, or install them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli.localstack import DEPLOY, StackRefused

INSTALL_TIMEOUT_S = 1800
BREW = tuple(
    f"{root}/{place}"
    for root in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
    for place in ("sbin", "bin", "opt/rabbitmq/sbin", "opt/mariadb/bin", "opt/mysql/bin")
)
# Debian's /usr/sbin/rabbitmq-server switches to the user rabbitmq and its own log files, so the
# script behind it comes first; /usr/sbin is not on the PATH of an ordinary user.
PLACES = ("/usr/lib/rabbitmq/bin", *BREW, "/usr/local/sbin", "/usr/sbin", "/usr/bin")

PACKAGES = ("rabbitmq-server", "mariadb-server-core", "mariadb-client-core")


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

    def find(name: str) -> Path | None:
        executable = shutil.which(name, path=path)
        return Path(executable) if executable else None

    rabbitmq_server, erl, epmd = find("rabbitmq-server"), find("erl"), find("epmd")
    mariadb, mariadb_install, mysql = find("mariadbd"), find("mariadb-install-db"), find("mysqld")
    if not (rabbitmq_server and erl and epmd):
        return None
    if mariadb and mariadb_install:
        return Binaries(rabbitmq_server, erl, epmd, mariadb, mariadb_install)
    # Debian's MariaDB is also called mysqld, and that one can't initialize itself.
    if mysql and not mariadb:
        return Binaries(rabbitmq_server, erl, epmd, mysql, None)
    return None


def ensure_binaries(report: Callable[[str], None]) -> Binaries:
    """The executables, installed first if need be; raises StackRefused naming the remedy."""
    if binaries := find_binaries():
        return binaries
    what = "RabbitMQ and MariaDB (or MySQL)"
    apt_install(PACKAGES, what, remedy(), lambda: report(f"installing {what} with apt (once)"))
    if binaries := find_binaries():
        return binaries
    raise StackRefused(f"apt did not bring {what}: {remedy()}")


def remedy() -> str:
    """What to type on this system to get both servers."""
    if sys.platform == "darwin":
        return "run `brew install rabbitmq mariadb`"
    if shutil.which("apt-get"):
        return f"run `sudo apt-get install --no-install-recommends {' '.join(PACKAGES)}`"
    if shutil.which("dnf"):
        return "run `sudo dnf install rabbitmq-server mariadb-server`"
    return "install rabbitmq-server and mariadb-server with your package manager"


def apt_install(
    packages: tuple[str, ...], what: str, by_hand: str, begin: Callable[[], None]
) -> None:
    """Install Debian packages, calling `begin` first; raises StackRefused naming the remedy.

    Of several that install at once one works and the others wait for it.
    """
    command = ["sh", str(DEPLOY / "apt-install.sh"), *packages]
    if not shutil.which("apt-get"):
        raise StackRefused(f"{what} are needed: {by_hand}")
    if os.geteuid() != 0:
        if not (shutil.which("sudo") and _run(["sudo", "-n", "true"]).returncode == 0):
            raise StackRefused(
                f"{what} are needed and installing them needs root: {by_hand}, then start again"
            )
        command = ["sudo", "-n", *command]
    begin()
    try:
        done = _run(command)
    except subprocess.TimeoutExpired as error:
        raise StackRefused(f"apt took over {INSTALL_TIMEOUT_S} s: {by_hand}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise StackRefused(f"apt could not install {what} ({last}): {by_hand}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (our own commands)
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
