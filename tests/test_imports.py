"""The layout's promise: imports point one way, and the core is pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "src/ledger/core").glob("*.py"))
CLOCKS_CHANCE_AND_IO = {"asyncio", "io", "logging", "os", "random", "secrets", "socket", "time"}


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imported(path: Path) -> set[str]:
    """The modules that a file imports, as they are written."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_nothing_but_the_standard_library_and_msgspec(path: Path) -> None:
    for module in imported(path):
        top = module.split(".")[0]
        allowed = top in sys.stdlib_module_names or top == "msgspec"
        assert allowed or module.startswith("ledger.core."), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_has_no_clock_no_chance_and_no_io(path: Path) -> None:
    assert not imported(path) & CLOCKS_CHANCE_AND_IO


def test_only_the_cli_imports_every_package() -> None:
    ours = {"ledger", "projections", "api", "cli"}
    seen = {
        package: {
            module.split(".")[0]
            for path in (ROOT / "src" / package).rglob("*.py")
            for module in imported(path)
        }
        & ours
        for package in ours
    }
    assert seen == {
        "ledger": {"ledger"},
        "projections": {"ledger", "projections"},
        "api": {"ledger", "projections", "api"},
        "cli": ours,
    }
