"""Times as people and programs write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

_WRITTEN: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d:\d\d)(\.(?P<part>\d{1,9}))?"
    r"(?P<zone>[Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
).fullmatch
_FORM: Final = "must be a time such as 2026-01-31T12:00:00Z (RFC 3339)"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class BadInstant(ValueError):
    """A text that is not exactly one time."""


def instant_us(text: str) -> int:
    """Microseconds since 1970 of a time in RFC 3339, what is finer cut off; raises BadInstant."""
    written = _WRITTEN(text)
    if written is None:
        raise BadInstant(_FORM)
    if not written["zone"]:
        raise BadInstant(f"must have a zone: write {text}Z for UTC")
    zone = written["zone"].upper().replace("Z", "+00:00")
    try:
        second = datetime.fromisoformat(f"{written['day']}T{written['time']}{zone}")
    except ValueError:
        raise BadInstant(_FORM) from None
    part_us = int((written["part"] or "").ljust(6, "0")[:6])
    return (second - _EPOCH) // _MICROSECOND + part_us
