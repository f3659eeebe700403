"""What the reference pages list is what the code has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup

from api.app import ROUTES
from api.operation import PREFIX
from cli.main import COMMANDS, load
from cli.settings import Settings
from ledger.core.events import DECIDED, SUBMITTED, Reason
from ledger.runtime import failpoints

ROOT = Path(__file__).parents[2]


def rows(page: str, heading: str = "") -> dict[str, list[str]]:
    """The rows of the tables of a page, below a heading, by their first cell."""
    return {first.strip("`"): rest for first, *rest in cells(page, heading)}


def cells(page: str, heading: str = "") -> list[list[str]]:
    """The cells of the tables of a page, below a heading, row by row."""
    text = (ROOT / page).read_text()
    if heading:
        text = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_as_it_is(name: str) -> None:
    field = Settings.model_fields[name]
    default = "" if field.default is None else f"`{field.default}`"
    documented = rows("docs/reference/settings.md")[f"LEDGER_{name.upper()}"]
    assert documented == [default, field.description]


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = set(rows("docs/reference/settings.md")) - {"variable"}
    assert documented == {f"LEDGER_{name.upper()}" for name in Settings.model_fields}


def test_every_failpoint_is_documented() -> None:
    documented = set(rows("docs/explanation/promises.md", "Failpoints"))
    actions = {"die", "stop", "raise", "delay:SECONDS"}
    assert documented - {"action", "name"} == failpoints.NAMES | actions


def test_what_is_said_to_prove_a_promise_exists() -> None:
    text = (ROOT / "docs/explanation/promises.md").read_text()
    proofs = set(re.findall(r"`(tests/[^`]+)`", text))
    assert proofs
    assert not [proof for proof in proofs if not (ROOT / proof).exists()]


def test_every_command_is_documented() -> None:
    commands = set(_commands())
    assert set(rows("docs/reference/commands.md")) - {"command"} == commands


def _commands() -> Iterator[str]:
    for name in COMMANDS:
        command = load(name)
        inner = command.commands if isinstance(command, TyperGroup) else {}
        yield from [f"ledger {name} {each}" for each in inner] or [f"ledger {name}"]


def test_every_event_and_its_fields_are_documented() -> None:
    documented = rows("docs/reference/events.md")
    for kind, types in (("submitted", SUBMITTED), ("decided", DECIDED)):
        for name, payload in types.items():
            fields = ", ".join(f"`{field}`" for field in payload.__struct_fields__)
            assert documented[name] == [kind, fields or "–"]


def test_every_reason_is_documented() -> None:
    assert set(rows("docs/reference/events.md", "Reasons")) - {"reason"} == set(Reason)


def test_the_readme_lists_each_route_once_and_no_others() -> None:
    served = {
        f"{method} {path.removeprefix(PREFIX)}"
        for path, handlers in ROUTES.items()
        for method in handlers
    }
    listed = [call for call, *_ in cells("README.md", "REST")]
    assert sorted(listed) == sorted(served | {"call"})


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")))
def test_no_link_between_pages_is_broken(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "path", re.findall(r"`(tests/[\w/.]+)`", (ROOT / "ARCHITECTURE.md").read_text())
)
def test_what_the_architecture_page_names_as_proof_exists(path: str) -> None:
    assert (ROOT / path).exists()
