"""The layout's promise: imports point one way, and the core is pure."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
CLOCKS_CHANCE_AND_IO = {"asyncio", "io", "logging", "os", "random", "secrets", "socket", "time"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Who imports what, packages of others included."""
    packages = ("ledger", "projections", "api", "cli")
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def imported(graph: grimp.ImportGraph, package: str) -> set[str]:
    """What the modules of a package import from outside it."""
    modules = {package} | graph.find_descendants(package)
    return {
        target for module in modules for target in graph.find_modules_directly_imported_by(module)
    } - modules


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_imports_nothing_but_the_standard_library_and_msgspec(
    graph: grimp.ImportGraph,
) -> None:
    assert imported(graph, "ledger.core") - sys.stdlib_module_names == {"msgspec"}


def test_the_core_has_no_clock_no_chance_and_no_io(graph: grimp.ImportGraph) -> None:
    assert not imported(graph, "ledger.core") & CLOCKS_CHANCE_AND_IO


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("ledger", set()),
        ("projections", {"ledger"}),
        ("api", {"ledger", "projections"}),
        ("cli", {"ledger", "projections", "api"}),
    ],
)
def test_only_the_cli_imports_every_package(
    graph: grimp.ImportGraph, package: str, others: set[str]
) -> None:
    ours = {"ledger", "projections", "api", "cli"}
    assert {module.split(".")[0] for module in imported(graph, package)} & ours == others


def test_the_command_starts_without_what_only_its_work_needs() -> None:
    """Help, a typo and the completion of a word are answered at once."""
    heavy = {"sqlalchemy", "asyncmy", "aio_pika", "pydantic", "starlette", "alembic", "pyarrow"}
    program = f"import sys, cli.main; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
