"""Programs that the benchmark needs besides the project's dependencies, installed when missing."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from cli.localstack import DEPLOY

ROOT: Final = Path(__file__).parents[1]
PEER_VENV: Final = ROOT / ".venv-peer"
PEER_LOCK: Final = ROOT / "bench/peer/requirements.lock"
PACKAGES: Final = {"wrk": "wrk", "redis-server": "redis-server"}
INSTALL_TIMEOUT_S: Final = 600


class NotInstalled(Exception):
    """Something that the benchmark needs is missing and could not be installed."""


def ensure_programs() -> None:
    """wrk and redis-server, installed with apt where they are missing; raises NotInstalled."""
    missing = [package for name, package in PACKAGES.items() if not shutil.which(name)]
    if missing:
        _run("sh", str(DEPLOY / "apt-install.sh"), *missing)


def ensure_peer() -> Path:
    """The Python of the peer's virtual environment, made where it's missing or out of date."""
    stamp = PEER_VENV / "installed"
    python = PEER_VENV / "bin/python"
    if not stamp.exists() or stamp.read_bytes() != PEER_LOCK.read_bytes():
        shutil.rmtree(PEER_VENV, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(PEER_VENV))
        _run(str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(PEER_LOCK))
        shutil.copyfile(PEER_LOCK, stamp)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise NotInstalled(f"`{' '.join(command)}` failed: {last}")
