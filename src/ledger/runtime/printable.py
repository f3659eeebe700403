"""Text from outside, made safe for whoever reads it: on a terminal, in a log, in a pipe.

Names, reasons and messages may hold anything: escape sequences that drive a terminal, line ends
that forge a line of a log, marks that turn the order of letters round (CVE-2021-42574).
"""

from typing import Final
from unicodedata import category

_SPACE: Final = "Zs"
# They shape Persian and Indic words and put emoji together.
_JOINERS: Final = "\u200c\u200d"


def printable(text: str, keep: str = "") -> str:
    """The text with each character that isn't for reading written as its escape, as `\\x1b`.

    Characters in `keep` are left alone.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in keep or _is_readable(char) else char.encode("unicode_escape").decode()
        for char in text
    )


def printable_json(line: bytes) -> bytes:
    """One line of JSON in which such characters are escapes of JSON: the same value to a reader.

    JSON itself only escapes what is below U+0020.
    """
    if line.isascii() and b"\x7f" not in line:
        return line
    text = line.decode()
    if text.isprintable():
        return line
    return "".join(char if _is_readable(char) else _json_escape(char) for char in text).encode()


def _is_readable(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or category(char) == _SPACE


def _json_escape(char: str) -> str:
    # Beyond U+FFFF JSON has two escapes, of the halves that UTF-16 makes of the character.
    digits = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[start : start + 4]}" for start in range(0, len(digits), 4))
