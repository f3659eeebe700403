"""What `ledger whatif` reads, decides and shows."""

import json
import tomllib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.table import Column, Table
from rich.text import Text

from cli.progress import progress
from cli.reading import reading
from cli.settings import Settings
from ledger.audit.whatif import Product, Tally, WhatIf, total
from ledger.core.events import TYPE_OF, OrderPlaced
from ledger.core.money import to_amount
from ledger.core.pricing import Rules, Tier
from ledger.eventlog.reader import EventReader

HEADERS: Final = ("decided", "what if", "change")
MAX_FACTOR: Final = 1000
MAX_TIERS: Final = 20


class BadRules(Exception):
    """The file does not hold rules."""


class TierForm(BaseModel):
    """A tier as a file tells it."""

    model_config = ConfigDict(extra="forbid")

    above_percent: int = Field(ge=0, le=100)
    factor: Decimal = Field(gt=0, le=MAX_FACTOR, decimal_places=6)


class RulesForm(BaseModel):
    """Rules as a file tells them."""

    model_config = ConfigDict(extra="forbid")

    tiers: list[TierForm] = Field(max_length=MAX_TIERS)
    last_factor: Decimal = Field(gt=0, le=MAX_FACTOR, decimal_places=6)

    @model_validator(mode="after")
    def _descend(self) -> Self:
        shares = [tier.above_percent for tier in self.tiers]
        if shares != sorted(set(shares), reverse=True):
            raise ValueError("the tiers must come with the highest above_percent first, each once")
        return self


class Supposed(Struct, frozen=True):
    """What came of all orders up to a position, and what would have come by other rules."""

    position: int
    decided: Tally
    whatif: Tally
    products: list[Product]


def load_rules(path: Path) -> Rules:
    """The rules in a TOML or JSON file; raises BadRules, naming the field and what it must be."""
    try:
        text = path.read_text()
        form = RulesForm.model_validate(_parsed(path, text))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRules(f"can't read {path}: {error}") from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise BadRules(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    except ValidationError as error:
        raise BadRules(f"{path}: {'; '.join(map(_told, error.errors()))}") from error
    tiers = tuple(Tier(tier.above_percent, tier.factor) for tier in form.tiers)
    return Rules(0, tiers, form.last_factor)


def _parsed(path: Path, text: str) -> Any:
    match path.suffix:
        case ".toml":
            return tomllib.loads(text, parse_float=Decimal)
        case ".json":
            return json.loads(text, parse_float=Decimal)
    raise BadRules(f"{path} must be a file whose name ends in .toml or .json")


def _told(error: Any) -> str:
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"]).lstrip(".")
    what = error["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


async def suppose(settings: Settings, rules: Rules) -> Supposed:
    """Decide all that was submitted by other rules, writing nothing.

    Raises VerificationFailed for a record that can not be read.
    """
    whatif = WhatIf(rules)
    async with reading(settings) as connection:
        reader = EventReader(connection)
        head = await reader.head()
        with progress("deciding", head.position) as moved:
            async for page in reader.pages(0, head.position, whole_batches=True):
                placed = [r.stream_id for r in page.records if r.type == TYPE_OF[OrderPlaced]]
                whatif.decide(page.records, await reader.last_positions(placed, page.position))
                moved(len(page.records))
    products = whatif.products()
    return Supposed(
        head.position,
        total(product.decided for product in products),
        total(product.whatif for product in products),
        products,
    )


def as_table(supposed: Supposed) -> Table:
    """All orders, for a person to read."""
    table = Table("", *(Column(name, justify="right") for name in HEADERS), box=None)
    decided, whatif = supposed.decided, supposed.whatif
    table.add_row("orders completed", *_counts(decided.completed, whatif.completed))
    for reason in sorted(decided.failed.keys() | whatif.failed.keys()):
        table.add_row(f"failed, {reason}", *_counts(decided.failed[reason], whatif.failed[reason]))
    table.add_row("cancelled", *_counts(decided.cancelled, whatif.cancelled))
    table.add_row("units sold", *_counts(decided.units, whatif.units))
    table.add_row("revenue", *_amounts(decided.revenue_minor, whatif.revenue_minor))
    return table


def products_table(products: Sequence[Product]) -> Table:
    """Products, for a person to read."""
    right = (
        Column(name, justify="right") for name in ("units", "what if", "revenue", *HEADERS[1:])
    )
    table = Table("product", *right, box=None)
    for each in products:
        units = f"{each.decided.units}", f"{each.whatif.units}"
        revenue = _amounts(each.decided.revenue_minor, each.whatif.revenue_minor)
        table.add_row(Text(each.name or "not listed"), *units, *revenue)
    return table


def _counts(decided: int, whatif: int) -> tuple[str, str, str]:
    return f"{decided}", f"{whatif}", f"{whatif - decided:+d}" if whatif != decided else ""


def _amounts(decided: int, whatif: int) -> tuple[str, str, str]:
    change = ("+" if whatif > decided else "") + to_amount(whatif - decided)
    return to_amount(decided), to_amount(whatif), change if whatif != decided else ""
