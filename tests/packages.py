"""Debian packages that tests need, installed when they are missing."""

import shutil

from cli.localstack.install import apt_install


def install_package(package: str) -> None:
    """Install a package; raises StackRefused naming the remedy."""
    apt_install((package,), package, f"install {package} with your package manager", lambda: None)


def require_program(name: str) -> str:
    """The path of a program, installed first if need be; raises StackRefused naming the remedy."""
    if not shutil.which(name):
        install_package(name)
    path = shutil.which(name)
    assert path, f"the package {name} brought no {name}"
    return path
