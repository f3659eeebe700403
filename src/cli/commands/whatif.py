"""`ledger whatif`: what orders would have come to by other pricing rules."""

import json
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Self

import typer
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.table import Column, Table

from cli import connections, console
from cli.settings import Settings
from ledger.audit.whatif import ProductTallies, Tally, WhatIf
from ledger.core.events import TYPE_OF, OrderPlaced
from ledger.core.money import to_amount
from ledger.core.pricing import Rules, Tier
from ledger.eventlog.reader import EventReader
from ledger.eventlog.records import VerificationFailed

# Products that the table shows; --json has all.
MAX_PRODUCTS: Final = 20
MAX_FACTOR: Final = 1000
MAX_TIERS: Final = 20


class BadRules(Exception):
    """The file does not hold pricing rules."""


class TierForm(BaseModel):
    """A tier as it stands in a file."""

    model_config = ConfigDict(extra="forbid")

    above_percent: int = Field(ge=0, le=100)
    factor: Decimal = Field(gt=0, le=MAX_FACTOR, decimal_places=6)


class RulesForm(BaseModel):
    """Rules as they stand in a file."""

    model_config = ConfigDict(extra="forbid")

    tiers: list[TierForm] = Field(max_length=MAX_TIERS)
    last_factor: Decimal = Field(gt=0, le=MAX_FACTOR, decimal_places=6)

    @model_validator(mode="after")
    def _descend(self) -> Self:
        shares = [tier.above_percent for tier in self.tiers]
        if shares != sorted(set(shares), reverse=True):
            raise ValueError("the tiers must come with the highest above_percent first, each once")
        return self


class WhatIfReport(Struct, frozen=True):
    """The outcome of all orders up to a position, as decided and by the other rules."""

    position: int
    decided: Tally
    whatif: Tally
    products: list[ProductTallies]


def whatif(
    rules: Annotated[Path, typer.Option(help="the other rules, in a .toml or .json file")],
    as_json: console.AsJson = False,
) -> None:
    """Run `ledger whatif`."""
    try:
        report = console.run(
            _compare(console.read_settings(), load_rules(rules)), handled=(VerificationFailed,)
        )
    except BadRules as error:
        console.usage_error(str(error))
    except VerificationFailed as failure:
        console.fail(f"{failure}; run `ledger verify`")
    if as_json:
        console.print_json(report)
        return
    console.out.print(
        f"all that was submitted up to position {report.position}, decided by {rules}:"
    )
    decided, other = report.decided, report.whatif
    headers = ("decided", "what if", "change")
    table = Table("", *(Column(name, justify="right") for name in headers), box=None)
    table.add_row("orders completed", *_compared(decided.completed, other.completed))
    for reason in sorted(decided.failed.keys() | other.failed.keys()):
        table.add_row(f"failed, {reason}", *_compared(decided.failed[reason], other.failed[reason]))
    table.add_row("cancelled", *_compared(decided.cancelled, other.cancelled))
    table.add_row("units sold", *_compared(decided.units, other.units))
    table.add_row("revenue", *_compared(decided.revenue_minor, other.revenue_minor, to_amount))
    console.out.print(table)
    columns = ("units", "what if", "revenue", "what if", "change")
    table = Table("product", *(Column(name, justify="right") for name in columns), box=None)
    for product in report.products[:MAX_PRODUCTS]:
        units = f"{product.decided.units}", f"{product.whatif.units}"
        revenue = _compared(product.decided.revenue_minor, product.whatif.revenue_minor, to_amount)
        table.add_row(product.name or "not listed", *units, *revenue)
    console.out.print(table)
    if len(report.products) > MAX_PRODUCTS:
        more = len(report.products) - MAX_PRODUCTS
        console.out.print(f"{more} more products change less: --json has all")


def load_rules(path: Path) -> Rules:
    """The rules in a TOML or JSON file; raises BadRules, naming the field and what it must be."""
    loads = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix)
    if loads is None:
        raise BadRules(f"{path} must be a file whose name ends in .toml or .json")
    try:
        form = RulesForm.model_validate(loads(path.read_text(), parse_float=Decimal))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRules(f"can't read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise BadRules(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            loc = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{loc[1:]}: {message}" if loc else message)
        raise BadRules(f"{path}: {'; '.join(problems)}") from error
    tiers = tuple(Tier(tier.above_percent, tier.factor) for tier in form.tiers)
    return Rules(0, tiers, form.last_factor)


async def _compare(settings: Settings, rules: Rules) -> WhatIfReport:
    """Decide all that was submitted by other rules, writing nothing.

    Raises VerificationFailed for a record that can not be read.
    """
    comparison = WhatIf(rules)
    async with connections.connection(settings, "projector", read_only=True) as connection:
        reader = EventReader(connection)
        head = await reader.head()
        with console.progress("deciding", head.position) as advance:
            async for page in reader.pages(0, head.position, whole_batches=True):
                placed = [r.stream_id for r in page.records if r.type == TYPE_OF[OrderPlaced]]
                last_positions = await reader.last_positions(placed, page.position)
                comparison.decide(page.records, last_positions)
                advance(len(page.records))
    return WhatIfReport(head.position, comparison.decided, comparison.whatif, comparison.products())


def _compared(decided: int, whatif: int, text: Callable[[int], str] = str) -> tuple[str, str, str]:
    change = whatif - decided
    sign = "+" if change > 0 else ""
    return text(decided), text(whatif), sign + text(change) if change else ""
