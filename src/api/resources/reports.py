"""/reports: the trial balance."""

from starlette.responses import Response

from api import schemas
from api.auth.principal import Scope
from api.context import Context
from api.http.parameters import AS_OF, MAX_POSITION, MIN_POSITION, Call
from api.http.responses import position_header, reply
from api.operation import Operation
from api.reads.slow_reads import as_of


@Operation(
    Scope.LEDGER_READ,
    "Show the trial balance",
    {200: schemas.TrialBalance},
    AS_OF,
    problems=("busy",),
    id="getTrialBalance",
)
async def show_trial_balance(context: Context, call: Call[None]) -> Response:
    """Add up the debits and credits of every account, as of a position or time if one is given.

    Money is in accounts of wallets, deposits, revenue and refunds, units in those of stock,
    received and sold.
    """
    at_most, at_least = MAX_POSITION, call[MIN_POSITION]
    client = context.client(call.request)
    if when := as_of(call):
        async with context.as_of.open(when, client) as (_, moment):
            at_most = at_least = moment.position
    balances, position = await context.reads.read_at_least(
        at_least, lambda: context.trial_balance.read(at_most, client)
    )
    return reply(200, schemas.trial_balance(balances), position_header(position))
