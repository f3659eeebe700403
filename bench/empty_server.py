"""The API's HTTP server with no work behind it: reads the body and answers 202 with some bytes.

Run it as `python -m bench.empty_server PORT`.
"""

import sys
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import uvloop
from starlette.types import Receive, Scope, Send

from api import server
from api.app import App

ANSWER = b'{"order_id":"%s","status":"PENDING"}' % (b"0" * 36)
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


class Nothing:
    """An application that answers without doing any work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 202, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER})

    def background_tasks(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Nothing runs beside it."""
        return ()

    def stop_waiting(self) -> None:
        """Nobody waits."""


if __name__ == "__main__":
    uvloop.run(server.run(cast(App, Nothing()), "127.0.0.1", int(sys.argv[1])))
