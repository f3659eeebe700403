"""Debian packages that tests need, installed when they are missing."""

import shutil

import pytest

from cli.localstack import StackRefused
from cli.localstack.install import apt_install


def install_package(package: str) -> None:
    """Install a package; raises StackRefused naming the remedy."""
    apt_install((package,), package, f"install {package} with your package manager", lambda: None)


def require_program(name: str) -> str:
    """The path of a program, installed first if need be; where it can't be the test is skipped."""
    if not shutil.which(name):
        try:
            install_package(name)
        except StackRefused as refused:
            pytest.skip(str(refused))
    path = shutil.which(name)
    assert path, f"the package {name} brought no {name}"
    return path
