"""Finding the servers, and saying what to do where they can't be installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.localstack import DEPLOY, StackRefused, install

NAMES = ("rabbitmq-server", "erl", "epmd", "mariadbd", "mariadb-install-db", "mysqld")


def make_executables(directory: Path, *names: str) -> tuple[str]:
    directory.mkdir()
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return (str(directory),)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the named places is searched."""
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.usefixtures("only")
def test_mariadb_is_preferred_to_mysql(tmp_path: Path) -> None:
    found = install.find_binaries(make_executables(tmp_path / "bin", *NAMES))
    assert found
    assert (found.database.name, found.database_install) == (
        "mariadbd",
        tmp_path / "bin" / "mariadb-install-db",
    )


@pytest.mark.usefixtures("only")
def test_mysql_serves_where_there_is_no_mariadb(tmp_path: Path) -> None:
    names = ("rabbitmq-server", "erl", "epmd", "mysqld")
    found = install.find_binaries(make_executables(tmp_path / "bin", *names))
    assert found
    assert (found.database.name, found.database_install) == ("mysqld", None)


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("missing", ["rabbitmq-server", "erl", "epmd", "mariadb-install-db"])
def test_a_server_that_is_there_in_part_counts_as_missing(tmp_path: Path, missing: str) -> None:
    names = [name for name in NAMES if name != missing]
    assert install.find_binaries(make_executables(tmp_path / "bin", *names)) is None


def test_debians_wrapper_which_needs_the_user_rabbitmq_is_not_taken() -> None:
    places = list(install.PLACES)
    assert places.index("/usr/lib/rabbitmq/bin") < places.index("/usr/sbin")


@pytest.mark.parametrize(
    ("platform", "tools", "remedy"),
    [
        ("darwin", set(), "brew install rabbitmq mariadb"),
        ("linux", {"dnf"}, "sudo dnf install rabbitmq-server mariadb-server"),
        ("linux", set(), "install rabbitmq-server and mariadb-server with your package manager"),
    ],
)
def test_without_apt_one_sentence_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, platform: str, tools: set[str], remedy: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: name if name in tools else None)
    with pytest.raises(StackRefused, match=remedy):
        install.ensure_binaries(lambda _: None)


def test_without_root_or_sudo_nothing_is_tried_and_the_sentence_has_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: name if name == "apt-get" else None
    )
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(StackRefused, match="needs root: run `sudo apt-get install"):
        install.ensure_binaries(lambda _: None)


@pytest.mark.parametrize("status", [0, 100])
def test_no_package_starts_a_server_and_the_system_is_left_as_it_was(
    tmp_path: Path, status: int
) -> None:
    policy = tmp_path / "policy-rc.d"
    apt = tmp_path / "bin" / "apt-get"
    make_executables(tmp_path / "bin", "apt-get")
    apt.write_text(f'#!/bin/sh\nsh "$POLICY_RC_D"; echo $? >>{tmp_path}/asked\nexit {status}\n')
    done = subprocess.run(
        ["sh", DEPLOY / "apt-install.sh", "some-server"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "POLICY_RC_D": str(policy)},
        check=False,
    )
    assert done.returncode == status
    assert set((tmp_path / "asked").read_text().split()) == {"101"}
    assert not policy.exists()


def test_a_policy_of_the_machine_is_kept(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    make_executables(tmp_path / "bin", "apt-get")
    subprocess.run(
        ["sh", DEPLOY / "apt-install.sh", "some-server"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "POLICY_RC_D": str(policy)},
        check=True,
    )
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_of_two_that_install_at_once_one_waits_for_the_other(tmp_path: Path) -> None:
    """apt-get fails where dpkg is locked, and each run would remove the other's policy."""
    make_executables(tmp_path / "bin", "apt-get")
    (tmp_path / "bin" / "apt-get").write_text(
        f"#!/bin/sh\nmkdir {tmp_path}/lock || exit 100\nsleep 0.2\nrmdir {tmp_path}/lock\n"
    )
    environment = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin",
        "POLICY_RC_D": str(tmp_path / "policy-rc.d"),
    }
    command = ["sh", DEPLOY / "apt-install.sh", "some-server"]
    runs = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
