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


class Machine:
    """A machine of Debian's family whose apt-get is a script that notes what it was asked."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.lines: list[str] = []
        monkeypatch.setenv("PATH", f"{directory / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("POLICY_RC_D", str(directory / "policy-rc.d"))
        monkeypatch.setattr("os.geteuid", lambda: 0)
        (directory / "bin").mkdir()
        self.places = (str(directory / "bin"),)
        find = install._find
        monkeypatch.setattr(install, "_find", lambda places=self.places: find(self.places))
        # Nothing of the real machine is found.
        which = shutil.which
        monkeypatch.setattr(
            shutil,
            "which",
            lambda name, path=None: which(name, path=path and self.places[0]),
        )

    def apt(self, plan: str, *brings: str) -> None:
        """Let a simulation print this, and an installation bring these executables."""
        bin_ = self.directory / "bin"
        (bin_ / "apt-get").write_text(
            "#!/bin/sh\n"
            f'echo "$*" >>{self.directory}/asked\n'
            f"case \"$*\" in *--simulate*) printf '{plan}' ;;\n"
            f"*install*) cd {bin_}; for name in {' '.join(brings)}; do\n"
            "echo '#!/bin/sh' >$name; chmod +x $name; done ;; esac\n"
        )
        (bin_ / "apt-get").chmod(0o755)

    def has(self, *names: str) -> None:
        """Let these executables be there."""
        for name in names:
            (self.directory / "bin" / name).write_text("#!/bin/sh\n")
            (self.directory / "bin" / name).chmod(0o755)

    def ensure(self) -> install.Binaries:
        return install.ensure_binaries(self.lines.append)

    def installed(self) -> list[str]:
        """The last words of each call that changes something."""
        asked = (self.directory / "asked").read_text().splitlines()
        changing = [line for line in asked if "--simulate" not in line and "install" in line]
        assert all("--no-remove" in line for line in changing)
        return [line.split(" install ")[1] for line in changing]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("there", "missing", "packages"),
    [
        (("mysqld",), ("rabbitmq-server", "erl", "epmd"), "rabbitmq-server"),
        (("mariadbd", "mariadb-install-db"), ("rabbitmq-server", "erl", "epmd"), "rabbitmq-server"),
        (
            ("rabbitmq-server", "erl", "epmd"),
            ("mariadbd", "mariadb-install-db"),
            "mariadb-server-core mariadb-client-core",
        ),
        ((), NAMES, "rabbitmq-server mariadb-server-core mariadb-client-core"),
    ],
)
def test_only_what_is_missing_is_installed_beside_the_database_that_is_there(
    machine: Machine, there: tuple[str, ...], missing: tuple[str, ...], packages: str
) -> None:
    machine.has(*there)
    machine.apt("", *missing)
    assert machine.ensure().database.name == ("mysqld" if "mysqld" in there else "mariadbd")
    assert machine.installed() == [packages]


def test_nothing_is_installed_where_apt_would_remove_a_package(machine: Machine) -> None:
    """Debian's MariaDB and MySQL exclude each other: the server of the machine was gone."""
    machine.has("rabbitmq-server", "erl", "epmd")
    machine.apt(
        "Remv mysql-client-core [9.7] []\\nPurg other [1]\\nInst mariadb-server-core (11)\\n"
    )
    with pytest.raises(
        StackRefused, match="apt would remove mysql-client-core, other: nothing was"
    ):
        machine.ensure()
    assert machine.installed() == []
    assert machine.lines == []


def test_one_line_says_what_is_installed_and_what_is_updated(machine: Machine) -> None:
    machine.has("mysqld")
    erlang = "".join(f"Inst erlang-{name} (25.2 Debian:12 [amd64])\\n" for name in "abcdefg")
    machine.apt(
        f"Inst libc6 [2.36-1] (2.36-2 Debian:12 [amd64])\\n{erlang}"
        "Inst rabbitmq-server (3.10 Debian:12 [all])\\nConf rabbitmq-server (3.10)\\n",
        "rabbitmq-server",
        "erl",
        "epmd",
    )
    machine.ensure()
    assert machine.lines == [
        "RabbitMQ is missing: apt installs rabbitmq-server, erlang-a, erlang-b, erlang-c and 4 more"
        " and updates libc6 (once)"
    ]


def test_what_apt_did_not_bring_is_named(machine: Machine) -> None:
    machine.has("mysqld")
    machine.apt("")
    with pytest.raises(StackRefused, match="apt did not bring RabbitMQ: run `sudo apt-get install"):
        machine.ensure()


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
