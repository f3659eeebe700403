"""A client of the feed as server-sent events, in as few words as a stock one needs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx

STREAM = {"Accept": "text/event-stream"}


class Heard(NamedTuple):
    """One event of a stream: its id, its data and its name."""

    position: int
    event: dict[str, Any]
    name: str


@asynccontextmanager
async def listen(
    http: httpx.AsyncClient, after: int, *, last: int | None = None, **parameters: str
) -> AsyncIterator[AsyncIterator[Heard]]:
    """What the feed says after a position, or after the last that was heard."""
    headers = STREAM if last is None else {**STREAM, "Last-Event-ID": str(last)}
    query = {"after": str(after), **parameters}
    async with http.stream("GET", "/events", params=query, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream"
        yield heard(response)


async def heard(response: httpx.Response) -> AsyncIterator[Heard]:
    """The events of a response, as they come."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name:
            fields[name] = value
        elif not line:
            yield Heard(int(fields["id"]), json.loads(fields["data"]), fields["event"])
            fields = {}
