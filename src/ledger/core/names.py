"""Names and descriptions as they may come in: one line of visible text, written in one way.

The rule stands where people and programs enter text. Events have none of it: older ledgers have
names of every sort, which must be read and replayed as they are.
"""

import unicodedata
from typing import Final

# One character of NFC is at most this many without it: three of Hangul, or a letter and two marks.
MAX_DECOMPOSED: Final = 3

_REFUSED: Final = {
    "Cc": "a control character",
    "Cf": "an invisible formatting character",
    "Cn": "a character that Unicode does not have yet",
    "Co": "a character for private use",
    "Cs": "half of a surrogate pair",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
# Invisible, although Unicode has them as letters and symbols.
_FILLERS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# U+200C and U+200D shape Persian and Indic words and put emoji together. Between other characters
# they only make two names that look alike.
_JOINERS: Final = frozenset("\u200c\u200d")
# A text that was pasted may begin or end with them.
_BLANKS: Final = " \t\r\n"
_BEFORE_JOINER: Final = frozenset(("Lo", "Mc", "Mn", "So", "Sk"))
_AFTER_JOINER: Final = frozenset(("Lo", "So"))


class BadText(ValueError):
    """The text can't be taken; the message, with its `limit`, is meant for whoever wrote it."""

    def __init__(self, message: str, limit: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit


def clean_name(text: str, max_length: int) -> str:
    """The name in NFC (UAX #15) and without blanks around it, in at most `max_length` characters.

    Raises BadText for characters that can't be seen and for a name without any that can.
    """
    name = _clean(text, max_length)
    if not any(unicodedata.category(c)[0] in "LNPS" and c not in _FILLERS for c in name):
        raise BadText("must have at least 1 visible character", 1)
    return name


def clean_description(text: str, max_length: int) -> str:
    """The description as a name would be, except that it may be empty and have lines and tabs."""
    return _clean(text.replace("\r\n", "\n"), max_length, "\n\t")


def _clean(text: str, max_length: int, allowed: str = "") -> str:
    # NFC takes time that grows with the square of the marks on one letter: count them first.
    if len(text) <= MAX_DECOMPOSED * max_length:
        if not (text.isascii() and text.isprintable()):
            _refuse_invisible(text, allowed)
            text = unicodedata.normalize("NFC", text.strip(_BLANKS))
        text = text.strip()
    if len(text) > max_length:
        raise BadText(f"must have at most {max_length} characters: shorten it", max_length)
    return text


def _refuse_invisible(text: str, allowed: str) -> None:
    start, end = len(text) - len(text.lstrip(_BLANKS)), len(text.rstrip(_BLANKS))
    for i in range(start, end):
        character = text[i]
        category = unicodedata.category(character)
        if category not in _REFUSED or character in allowed:
            continue
        if (
            character in _JOINERS
            and 0 < i < len(text) - 1
            and unicodedata.category(text[i - 1]) in _BEFORE_JOINER
            and unicodedata.category(text[i + 1]) in _AFTER_JOINER
        ):
            continue
        words = f"{_REFUSED[category]}, U+{ord(character):04X} at character {i + 1}"
        raise BadText(f"must not have {words}: leave it out")
