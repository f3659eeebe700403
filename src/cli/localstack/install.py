"""Find RabbitMQ and MariaDB or MySQL on this machine, or install what is missing of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.localstack import DEPLOY, StackRefused

INSTALL_TIMEOUT_S = 1800
WOULD_REMOVE = 3  # the status of apt-install.sh
BREW = tuple(
    f"{root}/{place}"
    for root in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
    for place in ("sbin", "bin", "opt/rabbitmq/sbin", "opt/mariadb/bin", "opt/mysql/bin")
)
# Debian's /usr/sbin/rabbitmq-server switches to the user rabbitmq and its own log files, so the
# script behind it comes first; /usr/sbin is not on the PATH of an ordinary user.
PLACES = ("/usr/lib/rabbitmq/bin", *BREW, "/usr/local/sbin", "/usr/sbin", "/usr/bin")

# Debian's packages, by what somebody calls the server. The database is only asked for where neither
# MariaDB nor MySQL is there.
PACKAGES = {
    "RabbitMQ": ("rabbitmq-server",),
    "MariaDB": ("mariadb-server-core", "mariadb-client-core"),
}
NAMED_PACKAGES = 4  # in a line; of others it says how many there are
BROKER = frozenset({"rabbitmq-server", "erl", "epmd"})
MARIADB = frozenset({"mariadbd", "mariadb-install-db"})


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
    found = _find(places)
    if missing_servers(found):
        return None
    return Binaries(
        found["rabbitmq-server"],
        found["erl"],
        found["epmd"],
        found.get("mariadbd") or found["mysqld"],
        found["mariadb-install-db"] if "mariadbd" in found else None,
    )


def missing_servers(found: Mapping[str, Path]) -> list[str]:
    """Keys of PACKAGES of which an executable is not among those found."""
    missing = [] if found.keys() >= BROKER else ["RabbitMQ"]
    # Debian's MariaDB is also called mysqld, and that one can't initialize itself.
    if not (found.keys() >= MARIADB or ("mysqld" in found and "mariadbd" not in found)):
        missing.append("MariaDB")
    return missing


def _find(places: tuple[str, ...] = PLACES) -> dict[str, Path]:
    path = os.pathsep.join((*places, os.environ.get("PATH", os.defpath)))
    found = {name: shutil.which(name, path=path) for name in (*BROKER, *MARIADB, "mysqld")}
    return {name: Path(place) for name, place in found.items() if place}


def ensure_binaries(report: Callable[[str], None]) -> Binaries:
    """The executables, what is missing installed first; raises StackRefused naming the remedy."""
    if binaries := find_binaries():
        return binaries
    names = missing_servers(_find())
    what = " and ".join(names)
    packages = tuple(package for name in names for package in PACKAGES[name])
    apt_install(packages, what, remedy(names), report)
    if binaries := find_binaries():
        return binaries
    raise StackRefused(f"apt did not bring {what}: {remedy(names)}")


def remedy(names: Sequence[str]) -> str:
    """What to type on this system to get these servers."""
    if sys.platform == "darwin":
        return f"run `brew install {' '.join(names).lower()}`"
    if shutil.which("apt-get"):
        packages = " ".join(package for name in names for package in PACKAGES[name])
        return f"run `sudo apt-get install --no-remove --no-install-recommends {packages}`"
    servers = [f"{name.lower()}-server" for name in names]
    if shutil.which("dnf"):
        return f"run `sudo dnf install {' '.join(servers)}`"
    return f"install {' and '.join(servers)} with your package manager"


def apt_install(
    packages: tuple[str, ...], what: str, by_hand: str, report: Callable[[str], None]
) -> None:
    """Install Debian packages, reporting in one line which; raises StackRefused with the remedy.

    Nothing is installed where apt would remove a package for it. Of several that install at once
    one works and the others wait for it.
    """
    script = ["sh", str(DEPLOY / "apt-install.sh")]
    if not shutil.which("apt-get"):
        raise StackRefused(f"{what} is needed: {by_hand}")
    if os.geteuid() != 0:
        if not (shutil.which("sudo") and _run(["sudo", "-n", "true"]).returncode == 0):
            raise StackRefused(
                f"{what} is needed and installing it needs root: {by_hand}, then start again"
            )
        script = ["sudo", "-n", *script]
    try:
        done = _run([*script, "--plan", *packages])
        if not done.returncode:
            if changes := _changes(done.stdout, packages):
                report(f"{what} is missing: apt {changes} (once)")
            done = _run([*script, "--as-planned", *packages])
    except subprocess.TimeoutExpired as error:
        raise StackRefused(f"apt took over {INSTALL_TIMEOUT_S} s: {by_hand}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        if done.returncode == WOULD_REMOVE:
            raise StackRefused(
                f"{what} is missing, and {last}: nothing was changed; install {what} in a way that"
                " keeps what you have, or run `docker compose up` instead"
            )
        raise StackRefused(f"apt could not install {what} ({last}): {by_hand}")


def _changes(plan: str, packages: tuple[str, ...]) -> str:
    """What a simulation of apt says it would do: installs first what it was asked for."""
    new: list[str] = []
    upgraded: list[str] = []
    for line in plan.splitlines():
        if line.startswith("Inst "):
            # Of what is there already the version comes first, in brackets.
            (upgraded if " [" in line.partition("(")[0] else new).append(line.split()[1])
    new.sort(key=lambda name: name not in packages)
    told = [
        f"{verb} {', '.join(names[:NAMED_PACKAGES])}"
        + (f" and {more} more" if (more := len(names[NAMED_PACKAGES:])) else "")
        for verb, names in (("installs", new), ("updates", upgraded))
        if names
    ]
    return " and ".join(told)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (our own commands)
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
