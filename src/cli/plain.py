"""Bytes of strangers, made fit to be shown: nothing of them may reach a terminal as it is."""

from collections.abc import Iterator
from typing import Final

import msgspec

MAX_SHOWN: Final = 4096
HEX_LINE: Final = 16


def body_lines(body: bytes | None) -> str:
    """The first MAX_SHOWN bytes: JSON indented, other text as it is, anything else in hex."""
    if body is None:
        return "its bytes were erased"
    text = as_text(body)
    if text is None:
        shown, cut = "\n".join(_hex_lines(body[:MAX_SHOWN])), len(body) > MAX_SHOWN
    else:
        pretty = _pretty(body) or text
        shown, cut = plain(pretty[:MAX_SHOWN], keep="\n"), len(pretty) > MAX_SHOWN
    return f"{shown}\n… cut here: `--raw` prints all {len(body)} bytes" if cut else shown


def as_text(body: bytes) -> str | None:
    """The body as text; None where it's something else."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(each.isprintable() or each in "\t\r\n" for each in text) else None


def _pretty(body: bytes) -> str | None:
    try:
        return msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, RecursionError):
        return None


def _hex_lines(body: bytes) -> Iterator[str]:
    for at in range(0, len(body), HEX_LINE):
        line = body[at : at + HEX_LINE]
        letters = (chr(byte) for byte in line)
        ascii_ = "".join(each if " " <= each <= "~" else "." for each in letters)
        yield f"{at:08x}  {line.hex(' '):<{3 * HEX_LINE - 1}}  {ascii_}"


def plain(text: str, keep: str = "") -> str:
    """The text without what could command a terminal: each such character as its escape."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )
