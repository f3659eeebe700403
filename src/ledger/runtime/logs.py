"""Logs as lines of JSON or of text, on standard error. No password gets through.

What a line is about is given as `extra`: request_id, event_id, position, epoch. Within a request
its id comes by itself.
"""

import logging
import re
import sys
from contextvars import ContextVar
from typing import Final

from pythonjsonlogger.msgspec import MsgspecFormatter

from ledger.runtime.timestamps import SECOND_US, format_us

OURS: Final = ("ledger", "projections", "api", "cli")
ACCESS: Final = "api.access"
_TOO_LOUD: Final = {"aiormq": "CRITICAL", "asyncmy": "ERROR", "alembic": "WARNING"}
_SECRETS: Final = (
    (re.compile(r"(\w://[^\s:/@\"]*:)[^\s\"]+(?=@)"), r"\1***"),
    (re.compile(r"(?i)\b((?:bearer|basic) )[\w.~+/=-]{8,}"), r"\1***"),
)

request_id: Final[ContextVar[bytes | None]] = ContextVar("request_id", default=None)
"""The request that is being answered."""


def without_secrets(line: str) -> str:
    """The line without passwords of URLs and without credentials of requests."""
    for secret, replacement in _SECRETS:
        line = secret.sub(replacement, line)
    return line


class Json(MsgspecFormatter):
    """One JSON object a line: time, level, event, logger, and what the line is about."""

    def __init__(self) -> None:
        super().__init__(
            "%(time)s %(levelname)s %(message)s %(name)s",
            rename_fields={"levelname": "level", "message": "event", "name": "logger"},
        )

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        record.time = format_us(int(record.created * SECOND_US))
        if (current := request_id.get()) and not hasattr(record, "request_id"):
            record.request_id = current.decode("latin-1")
        return without_secrets(super().format(record))


class Text(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return without_secrets(super().format(record))


def formatter(style: str) -> logging.Formatter:
    """How lines look: json, text, or auto, which is text on a terminal."""
    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    return Json() if as_json else Text()


def configure(style: str, level: str, *, access: bool = False) -> None:
    """Log to standard error from now on, in a style of `formatter`.

    `level` holds for our own lines. Libraries say no more than INFO: their DEBUG shows passwords.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(style))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for library, its_level in _TOO_LOUD.items():
        logging.getLogger(library).setLevel(its_level)
    for ours in OURS:
        logging.getLogger(ours).setLevel(level)
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.WARNING)
