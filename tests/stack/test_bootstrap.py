"""The first `make`: whatever stands in its way is one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.localstack import DEPLOY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project whose environment was never made."""
    (tmp_path / "deploy").mkdir()
    for name in ("bootstrap.sh", "pip_progress.py"):
        shutil.copy(DEPLOY / name, tmp_path / "deploy")
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(DEPLOY.parent / name, tmp_path)
    return tmp_path


def refusal(checkout: Path, **changes: str) -> str:
    """What the script says when it gives up."""
    done = subprocess.run(
        ["sh", checkout / "deploy" / "bootstrap.sh"],
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    return line


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_too_old_is_named_with_its_version(checkout: Path) -> None:
    old = executable(
        checkout / "bin" / "python", 'case "$2" in *print*) echo 3.9.2;; *) exit 1;; esac'
    )
    assert f"Python 3.11 or later is needed; {old} is 3.9.2" in refusal(checkout, PYTHON=old)


def test_a_python_that_is_not_there_is_named(checkout: Path) -> None:
    assert "PYTHON=/nowhere is none" in refusal(checkout, PYTHON="/nowhere")


def test_a_disk_without_room_is_named_before_anything_is_made(checkout: Path) -> None:
    executable(checkout / "bin" / "df", "echo head; echo /dev/x 0 0 102400 0 /")
    path = f"{checkout}/bin:{os.environ['PATH']}"
    said = refusal(checkout, PYTHON=sys.executable, PATH=path)
    assert "needs 1100 MB of disk" in said
    assert "100 MB free" in said
    assert not (checkout / ".venv").exists()
