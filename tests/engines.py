"""`make test-engines`: the suite on the servers and the Python of other Debian releases.

Each release is a root directory below ~/.cache/order-ledger/roots (XDG_CACHE_HOME), made once from
the Debian mirror that this machine's apt uses. The suite runs in it as root with processes, mounts
and memory files of its own; a whole run writes its row into docs/reference/engines.md.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from cli.localstack import StackRefused
from tests.packages import require_program

REPOSITORY: Final = Path(__file__).parents[1]
PAGE: Final = REPOSITORY / "docs/reference/engines.md"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "order-ledger"
# A suite with three workers and their servers' files in memory takes this at most.
SUITE_BYTES: Final = 8_000_000_000

TOOLS: Final = ("python3", "python3-venv", "make", "ca-certificates", "procps", "curl", "strace")
MARIADB: Final = ("mariadb-server-core", "mariadb-client-core")
MYSQL: Final = ("mysql-server-core", "mysql-client-core")
RELEASES: Final = {"bookworm": MARIADB, "trixie": MARIADB, "sid": MYSQL}

# What apt must know of this machine's network and clock, and where pip is told of its index.
APT_OPTIONS: Final = re.compile(r"^Acquire::(?:Check-|https?::).*;$", re.MULTILINE)
COPIED: Final = (
    Path("/etc/hosts"),
    Path("/etc/resolv.conf"),
    Path("/usr/local/share/ca-certificates"),
    Path("/etc/pip.conf"),
    Path("/etc/xdg/pip"),
)
PASSED_ON: Final = re.compile(
    r"PIP_(?:INDEX|EXTRA_INDEX|DEFAULT_TIMEOUT).*|(?:https?|no)_proxy", re.I
)

# Nothing of a run outlives this process, however it ends: unshare heeds no signal but SIGKILL, and
# passes that one on. A process namespace of its own is a must: the local stack looks for its homes
# in all of /proc.
NAMESPACES: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"),
)
ENTER: Final = """
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
exec chroot "$root" "$@"
"""

COUNTS: Final = re.compile(r"^(?:=+ )?(.*) in [\d.]+s(?: \([\d:]+\))?(?: =+)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a suite's own last lines say, with the versions that it ran on."""

    release: str
    versions: tuple[str, str, str]
    passed: int
    failed: int
    seconds: float

    def row(self, day: str) -> str:
        """Its row of the table."""
        told = f"{self.passed:,} passed" + (f", {self.failed:,} failed" if self.failed else "")
        columns = (self.release, *self.versions, told, f"{self.seconds / 60:.0f} min", day)
        return f"| {' | '.join(columns)} |"


def main() -> int:
    """Run what the command line asks for; 1 where a suite failed."""
    parser = argparse.ArgumentParser(prog="make test-engines", description=__doc__)
    parser.add_argument("--on", action="append", choices=RELEASES, help="default: trixie and sid")
    parser.add_argument("--fresh", action="store_true", help="make the roots again")
    parser.add_argument("--where-possible", action="store_true", help="or else end well")
    parser.add_argument(
        "tests", nargs="*", help="what pytest is to run, instead of the whole suite"
    )
    asked = parser.parse_args()
    # Python would wait for the threads, and these for their suites.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        mirror = prepare_machine()
    except StackRefused as refused:
        say(f"{'!' if asked.where_possible else '✗'} not run on other engines: {refused}")
        return 0 if asked.where_possible else 1
    releases = asked.on or ["trixie", "sid"]
    at_once = max(1, min(len(releases), psutil.virtual_memory().available // SUITE_BYTES))
    with ThreadPoolExecutor(at_once) as pool:
        done = list(pool.map(lambda each: run(each, mirror, asked.fresh, asked.tests), releases))
    if not asked.tests:
        page = PAGE.read_text()
        for outcome in filter(None, done):
            page = with_row(page, outcome.row(datetime.now(UTC).date().isoformat()))
        PAGE.write_text(page)
    return 0 if all(outcome and not outcome.failed for outcome in done) else 1


def prepare_machine() -> str:
    """The address of a Debian mirror; raises StackRefused where no root can be made."""
    if sys.platform != "linux" or not shutil.which("apt-get"):
        raise StackRefused("roots are made with apt, on Debian or a release of its family")
    if os.geteuid() != 0:
        raise StackRefused("making and entering a root needs root: run it with sudo")
    if said(*NAMESPACES, "true") is None:
        raise StackRefused(
            "this system lets root make no namespaces: start the container privileged"
        )
    require_program("mmdebstrap")
    targets = said("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)") or ""
    mirror = os.environ.get("DEBIAN_MIRROR") or mirror_of(targets)
    if not mirror:
        raise StackRefused("apt knows no Debian mirror: set DEBIAN_MIRROR, or run apt-get update")
    return mirror


def mirror_of(targets: str) -> str | None:
    """The first Debian archive in lines of an origin and an address."""
    found = re.search(r"^Debian (\S+/debian/?)$", targets, re.MULTILINE)
    return found[1] if found else None


def run(release: str, mirror: str, fresh: bool, tests: list[str]) -> Outcome | None:
    """Run the suite on a release; None where it could not begin, and its log says why."""
    root, log = CACHE / "roots" / release, CACHE / f"{release}.log"
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{release}.lock").open("w") as lock, log.open("w") as output:
        # The tree in a root is replaced at each start.
        fcntl.flock(lock, fcntl.LOCK_EX)
        say(f"… {release}: {log} has all of it")
        if not make_root(root, mirror, fresh, output.fileno()):
            say(f"✗ {release}: the root could not be made: see {log}")
            return None
        copy_tree(root / "order-ledger")
        if enter(root, output.fileno(), "make", "setup"):
            say(f"✗ {release}: the packages could not be installed: see {log}")
            return None
        began = time.monotonic()
        arguments = [f"ARGS=-q -n 3 --dist loadfile --no-loadscope-reorder {' '.join(tests)}"]
        status = enter(root, output.fileno(), "make", "test", *(arguments if tests else ()))
        passed, failed = counts(log.read_text(errors="replace"))
        # A suite that was interrupted tells of no failure.
        failed = max(failed, int(status != 0))
        outcome = Outcome(release, versions(root), passed, failed, time.monotonic() - began)
    say(f"{'✗' if failed else '✓'} {outcome.row('')}")
    for line in re.findall(r"^(?:FAILED|ERROR) .*", log.read_text(errors="replace"), re.MULTILINE):
        say(f"  {line}")
    return outcome


def make_root(root: Path, mirror: str, fresh: bool, output: int) -> bool:
    """Make the root unless one of these packages is there; False where mmdebstrap failed."""
    packages = ",".join((*TOOLS, "rabbitmq-server", *RELEASES[root.name]))
    options = APT_OPTIONS.findall(said("apt-config", "dump", "--no-empty") or "")
    stamp, mark = root / "made", hashlib.sha256(packages.encode()).hexdigest()
    if fresh or not stamp.exists() or stamp.read_text() != mark:
        say(f"… {root.name}: making the root (2 GB), a minute or two, this once")
        shutil.rmtree(root, ignore_errors=True)
        # It unmounts what it mounted when it's asked to end.
        command = ["setpriv", "--pdeathsig", "TERM"]
        command += ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}"]
        command += [f"--aptopt={each}" for each in options]
        command += ["--dpkgopt=force-unsafe-io", root.name, str(root), mirror]
        if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
            return False
    copies = {source: root / source.relative_to("/") for source in COPIED}
    copies[Path.home() / ".config/pip"] = root / "root/.config/pip"
    for source, target in copies.items():
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (root / "order-ledger").mkdir(exist_ok=True)
    if enter(root, output, "update-ca-certificates"):
        return False
    stamp.write_text(mark)
    return True


def copy_tree(target: Path) -> None:
    """Put the files of this working tree where the suite runs, and keep .venv there."""
    for old in target.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = said("git", "-C", str(REPOSITORY), "ls-files", "-z", "-co", "--exclude-standard")
    for name in (listed or "").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)


def enter(root: Path, output: int, *command: str) -> int:
    """Run a command in the root and in the tree there; its status."""
    environment = {k: v for k, v in os.environ.items() if PASSED_ON.fullmatch(k)} | {
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
        "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
    }
    within = ("env", "--chdir=/order-ledger", *command)
    return subprocess.run(
        [*NAMESPACES, "sh", "-euc", ENTER, "sh", str(root), *within],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        check=False,
    ).returncode


def versions(root: Path) -> tuple[str, str, str]:
    """Of Python, RabbitMQ and the database, as dpkg has them there."""
    server = RELEASES[root.name][0]
    told = said(
        "dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"
    )
    installed = dict(line.split(" ", 1) for line in (told or "").splitlines())

    def upstream(package: str) -> str:
        return re.sub(r"^\d+:|[-+~].*$", "", installed.get(package, "?"))

    # python3 names the series alone; python3.14-minimal has the release.
    series = ".".join(upstream("python3").split(".")[:2])
    database = f"{'MySQL' if server.startswith('mysql') else 'MariaDB'} {upstream(server)}"
    return upstream(f"python{series}-minimal"), upstream("rabbitmq-server"), database


def counts(log: str) -> tuple[int, int]:
    """Passed and failed tests by the last lines of each pytest in a log; an error is a failure."""
    found = [
        (int(number), word)
        for line in COUNTS.findall(log)
        for number, word in re.findall(r"(\d+) (passed|failed|error)", line)
    ]
    passed = sum(number for number, word in found if word == "passed")
    return passed, sum(number for number, _ in found) - passed


def with_row(page: str, row: str) -> str:
    """The page with this row in its table, instead of the one of the same release."""
    release = row.split("|")[1].strip()
    rule = re.search(r"^\| Debian .*\n\|-.*\n", page, re.MULTILINE)
    assert rule, f"{PAGE} has no table"
    kept = re.sub(rf"^\| {release} \|.*\n", "", page[rule.end() :], flags=re.MULTILINE)
    return f"{page[: rule.end()]}{row}\n{kept}"


def said(*command: str) -> str | None:
    """The output of a command, None where it failed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
