"""Answers: structs to JSON, and the headers that tell where and when."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.json import Encoder
from starlette.responses import Response

JSON: Final = "application/json"
PREFIX: Final = "/api/v1"

encode: Final = Encoder(decimal_format="number").encode


def reply(status: int, content: Struct, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body."""
    return Response(encode(content), status, headers, JSON)


def at(position: int) -> dict[str, str]:
    """The header that says up to where of the ledger the answer holds."""
    return {"Ledger-Position": str(position)}
