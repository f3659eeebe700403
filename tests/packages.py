"""Debian packages that tests need, installed when they are missing."""

import shutil

from cli.localstack.install import apt_install


def install_package(package: str) -> None:
    """Install a package; raises StackRefused naming the remedy."""
    apt_install((package,), package, f"install {package} with your package manager", lambda _: None)


def require_program(name: str, package: str = "") -> str:
    """The path of a program, installed first if need be; raises StackRefused naming the remedy."""
    package = package or name
    if not shutil.which(name):
        install_package(package)
    path = shutil.which(name)
    assert path, f"the package {package} brought no {name}"
    return path
