"""Policies of the broker that would quietly undo what the queues promise.

No AMQP account sees them. So they are looked up with the management API where the settings name
one, and with the broker's own `rabbitmqctl` where the local stack started it.
"""

import asyncio
import json
import logging
import os
import re
import signal
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import nan
from subprocess import DEVNULL, PIPE
from typing import Any, Final
from urllib.parse import quote
from urllib.request import Request, urlopen

from cli.settings import MissingSecret, Settings
from ledger.messaging.topology import INBOX, PARKING, BrokerQueue, policy_problems
from ledger.runtime.metrics import POLICY_PROBLEMS

log = logging.getLogger(__name__)

UNKNOWN: Final = (
    "the policies of the broker, which may undo what its queues promise: set"
    " LEDGER_AMQP_MANAGEMENT_URL"
)
ANSWER_TIMEOUT_S: Final = 5.0
RABBITMQCTL_TIMEOUT_S: Final = 60.0
# rabbitmqctl takes half a second of processor time, which a stack that starts needs elsewhere: it
# is `ledger migrate` that looks before anything starts.
FIRST_S: Final = 10.0
WATCH_S: Final = 120.0
APPLY_TO: Final = {"all", "queues", "quorum_queues"}
COLUMNS: Final = ("name", "policy", "operator_policy", "effective_policy_definition")


class PoliciesUnknown(Exception):
    """The broker did not tell its policies."""


async def read_problems(settings: Settings) -> tuple[str | None, list[str]]:
    """Why the policies are not known, or None, and what is wrong with them."""
    script = settings.home / "rabbitmq" / "rabbitmqctl"
    try:
        if settings.amqp_management_url:
            url = settings.amqp_management_url
            queues = await asyncio.to_thread(_ask_management, settings, url)
        elif script.exists():
            queues = await _ask_rabbitmqctl(settings, str(script.resolve()))
        else:
            return UNKNOWN, []
    except (PoliciesUnknown, MissingSecret) as error:
        return str(error), []
    problems = []
    for queue in queues:
        if queue["name"] in (INBOX, PARKING):
            names = (queue.get("policy"), queue.get("operator_policy"))
            definition = queue.get("effective_policy_definition") or {}
            problems += policy_problems(
                BrokerQueue(queue["name"], tuple(filter(None, names)), dict(definition))
            )
    return None, problems


def _ask_management(settings: Settings, url: str) -> list[dict[str, Any]]:
    account = b64encode(":".join(settings.amqp_account("monitor")).encode()).decode()
    if not url.startswith(("http://", "https://")):
        raise PoliciesUnknown(f"LEDGER_AMQP_MANAGEMENT_URL={url}: write http://host:15672")
    request = Request(  # noqa: S310 (checked above)
        f"{url.rstrip('/')}/api/queues/{quote(settings.amqp_vhost, safe='')}"
        f"?columns={','.join(COLUMNS)}",
        headers={"Authorization": f"Basic {account}"},
    )
    try:
        with urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:  # noqa: S310
            queues: list[dict[str, Any]] = json.load(answer)
    except (OSError, ValueError) as error:
        raise PoliciesUnknown(f"LEDGER_AMQP_MANAGEMENT_URL={url}: {error}") from error
    return queues


async def _ask_rabbitmqctl(settings: Settings, script: str) -> list[dict[str, Any]]:
    # RabbitMQ 3.10 lists no effective policies, so what it would choose is chosen here.
    chosen = [
        [policy for name in (INBOX, PARKING) for policy in _applied(listed, name)]
        for listed in await asyncio.gather(
            *(_list(settings, script, kind) for kind in ("policies", "operator_policies"))
        )
    ]
    return [*chosen[0], *chosen[1]]


def _applied(policies: list[dict[str, Any]], queue: str) -> list[dict[str, Any]]:
    """Those of the highest priority that apply to a queue, each as the queue shows it."""
    matching = [
        policy
        for policy in policies
        if policy["apply-to"] in APPLY_TO and _matches(policy["pattern"], queue)
    ]
    highest = max((policy["priority"] for policy in matching), default=0)
    return [
        {
            "name": queue,
            "policy": policy["name"],
            "effective_policy_definition": json.loads(policy["definition"])
            if isinstance(policy["definition"], str)
            else policy["definition"],
        }
        for policy in matching
        if policy["priority"] == highest
    ]


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        # Erlang's patterns have more than Python's: better to look at one too many.
        return True


async def _list(settings: Settings, script: str, kind: str) -> list[dict[str, Any]]:
    arguments = ("-q", "--formatter", "json", "-p", settings.amqp_vhost, f"list_{kind}")
    process = await asyncio.create_subprocess_exec(
        script, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(RABBITMQCTL_TIMEOUT_S):
            output, complaint = await process.communicate()
        if process.returncode:
            said = complaint.decode(errors="replace").strip().splitlines() or [""]
            raise PoliciesUnknown(f"{script} ended with {process.returncode}: {said[0]}")
        listed: list[dict[str, Any]] = json.loads(output)
    except (TimeoutError, ValueError) as error:
        raise PoliciesUnknown(f"{script}: {error!r}") from error
    finally:
        if process.returncode is None:
            # The script's own children, too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return listed


async def watch(
    read: Callable[[], Awaitable[tuple[str | None, list[str]]]],
    first_s: float = FIRST_S,
    every_s: float = WATCH_S,
) -> None:
    """Look soon and ever again; log what is new and count it in the metric.

    Nothing else is done: a writer that stopped would let messages wait, which a policy may expire.
    """
    told: list[str] = []
    POLICY_PROBLEMS.set(nan)
    await asyncio.sleep(first_s)
    while True:
        unknown, problems = await read()
        POLICY_PROBLEMS.set(nan if unknown else len(problems))
        if unknown and unknown not in told:
            log.warning("not checked: %s", unknown)
        for problem in problems:
            if problem not in told:
                log.error("%s", problem)
        told = [unknown] if unknown else problems
        await asyncio.sleep(every_s)
