"""Drift: where tables, triggers and grants of a database are not those that this version makes.

The server itself says what a table should look like: each one is made once more as a temporary
table, and the two are compared as `SHOW CREATE TABLE` shows them. So the comparison is the same on
every server and after an upgrade of one.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateIndex, CreateTable

from cli import connections, console
from cli.settings import MissingSecret, Settings
from ledger.eventlog.migrations import sql
from projections.tables import CHECKPOINTS, read_checkpoints
from projections.views.projection import LineProjection, Projection
from projections.views.registry import PROJECTIONS

TABLES: Final = (
    "events",
    "ledger_head",
    "ledger_identity",
    "snapshots",
    "customer_keys",
    "api_keys",
    "parking_log",
)
TRIGGERS: Final = (
    "events_no_delete",
    "events_no_update",
    "parking_log_no_delete",
    "parking_log_no_update",
)
# The rights of each account, table by table. Nobody but `migrate` may change `events`.
LEDGER_GRANTS: Final = {
    "writer": {
        "events": "SELECT, INSERT",
        "ledger_head": "SELECT, UPDATE",
        "ledger_identity": "SELECT",
        "snapshots": "SELECT, INSERT, DELETE",
        "customer_keys": "SELECT, INSERT, UPDATE (sealing_key, erased_at_us)",
    },
    "projector": {
        "events": "SELECT",
        "ledger_head": "SELECT",
        "ledger_identity": "SELECT",
        "snapshots": "SELECT",
        "customer_keys": "SELECT",
        "checkpoints": "SELECT, UPDATE",
        # `ledger status` shows what rebuilds left beside the views.
        "rebuilds": "SELECT",
    },
    "api": {
        "events": "SELECT",
        "ledger_identity": "SELECT",
        "snapshots": "SELECT",
        "customer_keys": "SELECT",
        "api_keys": "SELECT",
        "checkpoints": "SELECT",
    },
    "analyst": {"checkpoints": "SELECT"},
}
VIEW_GRANTS: Final = {
    "projector": "SELECT, INSERT, UPDATE, DELETE",
    "api": "SELECT",
    "analyst": "SELECT",
}
MIGRATE: Final = "run `ledger migrate`"
_WANTED: Final = "_wanted"
_grant_parts = re.compile(r"GRANT (.+?) ON (?:TABLE )?(\S+) TO [^ ]+(.*)").fullmatch
_right = re.compile(r"([A-Z][A-Z ]*[A-Z])(?: ?\(([^)]*)\))?")


class Drift(Struct, frozen=True):
    """What is not as it must be, and what to do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.what}: {self.remedy}"


async def find_drift(settings: Settings) -> list[Drift]:
    """Every difference of tables, triggers and grants from what `ledger migrate` makes.

    It needs the passwords of all accounts of the database. Raises MissingSecret.
    """
    passwords = settings.db_passwords()
    async with connections.connection(settings, "migrate") as connection:
        differences = [*await _tables(connection), *await _triggers(connection)]
    for role in passwords:
        if role in LEDGER_GRANTS:
            async with connections.connection(settings, role) as connection:
                differences += await _grants(connection, settings.db_name, role)
    return differences


def fail_on_drift(settings: Settings, problems: Sequence[str] = ()) -> None:
    """End the command with status 1, naming each difference and these problems, if there is one.

    Where a process can't read the passwords, as in a container of one role, nothing is compared.
    """
    lines = ["; ".join(problems)] if problems else []
    try:
        differences = console.run(find_drift(settings), handled=(MissingSecret,))
    except MissingSecret:
        differences = []
    if differences:
        lines.append("tables, triggers or grants are not as `ledger migrate` makes them")
        lines += map(str, differences)
    if lines:
        console.fail("\n".join(lines))


async def _tables(connection: AsyncConnection) -> list[Drift]:
    made = {name: [sql(name)] for name in TABLES}
    dialect = mysql.dialect()
    made[CHECKPOINTS.name] = [str(CreateTable(CHECKPOINTS).compile(dialect=dialect))]
    checkpoints = await read_checkpoints(connection, PROJECTIONS)
    for view in PROJECTIONS:
        # The table of another version may be another one; `ledger status` and migrate say which.
        if checkpoints[view.name].version == view.version:
            made[view.name] = [
                str(CreateTable(view.table).compile(dialect=dialect)),
                *(str(CreateIndex(index).compile(dialect=dialect)) for index in view.table.indexes),
            ]
    differences = []
    present = set((await connection.exec_driver_sql("SHOW TABLES")).scalars())
    for name, statements in made.items():
        if name not in present:
            remedy = "restore it from a backup" if name in TABLES else MIGRATE
            differences.append(Drift(f"the table {name} is missing", remedy))
            continue
        wanted = await _wanted_lines(connection, name, statements)
        found = await _lines(connection, name)
        differences += [_difference(name, line, "lacks") for line in sorted(wanted - found)]
        differences += [_difference(name, line, "also has") for line in sorted(found - wanted)]
    return differences


async def _wanted_lines(
    connection: AsyncConnection, name: str, statements: list[str]
) -> frozenset[str]:
    temporary = name + _WANTED
    for statement in statements:
        # Names of constraints are unique in a schema.
        other = re.sub(rf"\bCONSTRAINT {name}\w*", "CONSTRAINT", statement)
        other = re.sub(
            r"CREATE TABLE (IF NOT EXISTS )?\w+", f"CREATE TEMPORARY TABLE {temporary}", other
        )
        other = re.sub(rf" ON {name} ", f" ON {temporary} ", other)
        await connection.exec_driver_sql(other.replace("%", "%%"))
    lines = await _lines(connection, temporary)
    await connection.exec_driver_sql(f"DROP TEMPORARY TABLE {temporary}")
    return lines


async def _lines(connection: AsyncConnection, name: str) -> frozenset[str]:
    """One line a column, key or check, as the server shows it; without comments and their names."""
    _, shown = map(str, (await connection.exec_driver_sql(f"SHOW CREATE TABLE {name}")).one())
    definition = re.sub(r" COMMENT '(?:[^'\\]|''|\\.)*'", "", shown)
    definition = re.sub(r"CONSTRAINT `\w+` ", "", definition)
    _, *lines, end = definition.splitlines()
    engine = re.search(r"ENGINE=\w+", end)
    return frozenset([*(line.strip().rstrip(",") for line in lines), engine[0] if engine else end])


def _difference(table: str, line: str, verb: str) -> Drift:
    plain = line.replace("`", "")
    what = f"the table {table} {verb} {plain}"
    if table in {view.name for view in PROJECTIONS}:
        is_missing_index = verb == "lacks" and "KEY" in line
        remedy = MIGRATE if is_missing_index else f"run `ledger rebuild {table}`"
    elif verb == "lacks":
        add = "ADD" if "KEY" in line else "MODIFY or ADD"
        remedy = f"as an administrator, ALTER TABLE {table} {add} {plain}"
    else:
        remedy = "as an administrator, remove it with ALTER TABLE"
    return Drift(what, remedy)


async def _triggers(connection: AsyncConnection) -> list[Drift]:
    found = await connection.exec_driver_sql(
        "SELECT trigger_name, action_timing, event_manipulation, event_object_table,"
        " action_statement FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
    )
    present = {str(row[0]): tuple(_plain(part) for part in tuple(row)[1:]) for row in found}
    differences = []
    for name in TRIGGERS:
        if name not in present:
            what = f"the trigger {name} is missing, so rows may be changed or deleted"
            differences.append(Drift(what, MIGRATE))
        elif [present.pop(name)] != _trigger_parts(sql(name)):
            remedy = f"as an administrator, DROP TRIGGER {name}, then {MIGRATE}"
            differences.append(Drift(f"the trigger {name} is another one", remedy))
    ours = {*TABLES, CHECKPOINTS.name, *(view.name for view in PROJECTIONS)}
    for name, (_, _, table, _) in present.items():
        if table in ours:
            remedy = f"as an administrator, DROP TRIGGER {name}"
            differences.append(Drift(f"{table} has a trigger of others, {name}", remedy))
    return differences


async def make_missing_triggers(connection: AsyncConnection) -> list[str]:
    """Make the triggers of the ledger's tables that somebody dropped; returns their names."""
    found = set((await connection.exec_driver_sql("SHOW TRIGGERS")).scalars())
    missing = [name for name in TRIGGERS if name not in found]
    for name in missing:
        await connection.exec_driver_sql(sql(name))
    return missing


def _trigger_parts(statement: str) -> list[tuple[str, ...]]:
    found = re.findall(r"TRIGGER .*? (\w+) (\w+) ON (\w+) FOR EACH ROW(.*)", statement, re.DOTALL)
    return [tuple(map(_plain, parts)) for parts in found]


def _plain(part: str) -> str:
    return " ".join(part.split())


async def _grants(connection: AsyncConnection, schema: str, role: str) -> list[Drift]:
    account = f"ledger_{role}"
    shown: list[str] = list((await connection.exec_driver_sql("SHOW GRANTS")).scalars())
    found: dict[str, set[str]] = {}
    differences = []
    for grant in shown:
        parts = _grant_parts(grant)
        if not parts:
            remedy = "as an administrator, revoke it"
            differences.append(Drift(f"{account} has a role: {grant}", remedy))
            continue
        rights, target, options = parts.groups()
        database, table = target.replace("`", "").split(".", 1)
        if rights == "USAGE" or not covers_schema(database, schema):
            continue
        key = table if database == schema and table != "*" else target
        found[key] = _rights(rights) | ({"GRANT OPTION"} if "GRANT OPTION" in options else set())
    wanted = {table: _rights(rights) for table, rights in grants(role, PROJECTIONS).items()}
    for table in sorted(wanted | found):
        missing = wanted.get(table, set()) - found.get(table, set())
        if missing:
            what = f"{account} lacks {', '.join(sorted(missing))} on {table}"
            differences.append(Drift(what, MIGRATE))
        more = found.get(table, set()) - wanted.get(table, set())
        if more:
            target = table if "." in table else f"`{schema}`.{table}"
            rights = ", ".join(sorted(more))
            remedy = f"as an administrator, REVOKE {rights} ON {target} FROM {account}"
            differences.append(Drift(f"{account} also has {rights} on {table}", remedy))
    return differences


def covers_schema(pattern: str, schema: str) -> bool:
    """True if the database of a grant, where % and _ stand for others unless escaped, is this."""
    if pattern in ("*", schema):
        return True
    expression = re.sub(
        r"\\(.)|(%)|(_)|(.)",
        lambda part: ".*" if part[2] else "." if part[3] else re.escape(part[1] or part[4]),
        pattern,
    )
    return re.fullmatch(expression, schema) is not None


def _rights(text: str) -> set[str]:
    """Each right by itself, as UPDATE (a, b) is UPDATE (a) and UPDATE (b)."""
    rights = set()
    for right, columns in _right.findall(text):
        names = [name.strip(" `") for name in columns.split(",")] if columns else []
        rights |= {f"{right} ({name})" for name in names} or {right}
    return rights


def grants(role: str, projections: tuple[Projection[Any], ...]) -> dict[str, str]:
    """The rights of a role by table."""
    tables = dict(LEDGER_GRANTS[role])
    if role in VIEW_GRANTS:
        for view in projections:
            # A view of lines is append-only, as the ledger is.
            is_append_only = role == "projector" and isinstance(view, LineProjection)
            tables[view.name] = "SELECT, INSERT" if is_append_only else VIEW_GRANTS[role]
    return tables
