"""The tree stays tidy: names say what a module is, folders are layers, nothing is written twice."""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grimp
import pytest

ROOT: Final = Path(__file__).parents[1]
SRC: Final = ROOT / "src"
PACKAGES: Final = ("ledger", "projections", "api", "cli")

# The field's words that happen to end so; any other -ing says what is done, not what it is.
NOUNS_IN_ING: Final = {"messaging", "parking", "pending", "pricing", "tracing"}

# As many as a reader takes in at a glance.
MOST_FILES: Final = 17

# The `ledger` script is started from outside; it loads the commands, and Alembic the migrations.
LOADED_BY_NAME: Final = ("cli.main", "cli.commands.", "ledger.eventlog.migrations.")

SQL_ON_EVENTS: Final = re.compile(r"\b(FROM|INTO|JOIN|UPDATE|TABLE|ON)\s+`?events\b(?!\w)")
READ_OR_APPEND_EVENTS: Final = {
    "ledger.eventlog.reader": "every SELECT",
    "ledger.eventlog.store": "the append",
}


def modules() -> dict[str, Path]:
    """Every module of src with its file."""
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES: Final = modules()
TREES: Final = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Which module imports which."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def test_every_file_has_a_docstring() -> None:
    files = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    texts = {path: path.read_text() for path in files}
    silent = [
        p for p, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert not silent


def test_modules_are_named_by_nouns() -> None:
    last = {name: name.rpartition(".")[2] for name in MODULES}
    assert not [n for n, word in last.items() if word.endswith("ing") and word not in NOUNS_IN_ING]


def test_no_class_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_no_folder_has_more_files_than_one_takes_in() -> None:
    files = defaultdict(list)
    for path in MODULES.values():
        if path.name != "__init__.py":
            files[str(path.parent.relative_to(SRC))].append(path.stem)
    assert not {folder: len(names) for folder, names in files.items() if len(names) > MOST_FILES}


def test_folders_are_two_levels_deep() -> None:
    deep = {name for name in MODULES if name.count(".") > 2}  # package.folder.module
    assert all(name.startswith("ledger.eventlog.migrations.") for name in deep)


def test_every_module_is_imported(graph: grimp.ImportGraph) -> None:
    unused = [
        name
        for name, path in MODULES.items()
        if path.name != "__init__.py"
        and not name.startswith(LOADED_BY_NAME)
        and not graph.find_modules_that_directly_import(name)
    ]
    assert not unused


def test_no_modules_import_each_other(graph: grimp.ImportGraph) -> None:
    cycles = [
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.find_shortest_chain(imported, module)
    ]
    assert not cycles


def layers_of(package: str) -> set[str]:
    """What the import contracts of pyproject.toml call the parts of a package."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    contracts = tool["importlinter"]["contracts"]
    named = (
        layer
        for contract in contracts
        if contract["type"] == "layers" and package in contract.get("containers", [])
        for layer in contract["layers"]
    )
    return {part.strip() for layer in named for part in re.split(r"[|:]", layer)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_is_a_layer(package: str) -> None:
    folders = {p.name for p in (SRC / package).iterdir() if (p / "__init__.py").exists()}
    assert folders <= layers_of(package)


def sql_of(tree: ast.Module) -> Iterator[str]:
    """The string literals of a module, but for its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, documented)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value not in docs
        ):
            yield node.value


def test_only_the_event_log_has_sql_on_events() -> None:
    users = {m for m, tree in TREES.items() if any(map(SQL_ON_EVENTS.search, sql_of(tree)))}
    assert users <= READ_OR_APPEND_EVENTS.keys()
