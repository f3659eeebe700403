"""Logs as lines of JSON or of text, on standard error, with passwords and credentials masked.

Fields of a line are given as `extra`: event_id, position, epoch and others. `request_id` is added
while a request is answered.
"""

import logging
import re
import sys
from contextvars import ContextVar
from typing import Any, Final

from pythonjsonlogger.msgspec import MsgspecFormatter

from ledger.runtime.printable import printable, printable_json
from ledger.runtime.timestamps import SECOND_US, format_us

OURS: Final = ("ledger", "projections", "api", "cli")
ACCESS: Final = "api.access"
# aiormq reports each broken connection, which `keep_alive` does in one line; asyncmy each note of
# the server; alembic each migration.
_LIBRARY_LEVELS: Final = {"aiormq": "CRITICAL", "asyncmy": "ERROR", "alembic": "WARNING"}
# Lines hold what clients sent, so each of these takes time that grows with the line alone: no match
# begins inside a text that was already searched.
_WORD: Final = re.compile(r"[^\s\"]+")
_URL_USER: Final = re.compile(r"\w://[^/:@]*:")
_CREDENTIAL: Final = re.compile(r"(?i)\b((?:bearer|basic) )[\w.~+/=-]{8,}")

# The id of the request that is being answered.
request_id: Final[ContextVar[bytes | None]] = ContextVar("request_id", default=None)


def mask_secrets(line: str) -> str:
    """The line with `***` for passwords in URLs and credentials in Authorization headers."""
    if "://" in line and "@" in line:
        line = _WORD.sub(_without_password, line)
    return _CREDENTIAL.sub(r"\1***", line)


def _without_password(word: re.Match[str]) -> str:
    text, user = word[0], _URL_USER.search(word[0])
    at = text.rfind("@")
    # A password may have any character, so it goes on to the last @ of the word.
    return f"{text[: user.end()]}***{text[at:]}" if user and at > user.end() else text


class JsonFormatter(MsgspecFormatter):
    """One JSON object a line: time, level, event, logger, and the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        record.time = format_us(int(record.created * SECOND_US))
        if (current := request_id.get()) and not hasattr(record, "request_id"):
            record.request_id = current.decode("latin-1")
        return printable_json(mask_secrets(super().format(record)).encode()).decode()


class TextFormatter(logging.Formatter):
    """Lines for people: time, level, message.

    A message is one line, and the lines of a traceback are indented: no client can forge one.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the interface's name)
        """Render the line itself."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the interface's name)
        """Render a traceback."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        return mask_secrets(super().format(record))


def formatter(style: str) -> logging.Formatter:
    """The formatter of a style: json, text, or auto, which is text on a terminal and else json."""
    if style == "json" or (style == "auto" and not sys.stderr.isatty()):
        return JsonFormatter(
            "%(time)s %(levelname)s %(message)s %(name)s",
            rename_fields={"levelname": "level", "message": "event", "name": "logger"},
        )
    return TextFormatter("%(asctime)s %(levelname)s %(message)s")


def configure(style: str, level: str, *, access: bool = False) -> None:
    """Log to standard error from now on, in a style of `formatter`, our own lines from `level`."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(style))
    # Never below INFO for libraries: the DEBUG lines of aiormq contain the password.
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, library_level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(library_level)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.getLogger(ACCESS).setLevel(logging.INFO if access else logging.WARNING)
