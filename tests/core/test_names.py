"""Names: one line of visible text in one writing, and no character that can't be seen."""

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.names import MAX_DECOMPOSED, BadText, clean_description, clean_name

MAX = 100
BLANKS = "\t\r\n"
INVISIBLE = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ann", "ann"),
        ("  ann lee ", "ann lee"),
        ("\t ann lee\r\n", "ann lee"),
        ("\u00a0ann\u3000", "ann"),
        ("e\u0301", "é"),
        ("\u1112\u1161\u11ab", "한"),
        ("e\u0301" * MAX, "é" * MAX),
        ("日本 Łódź", "日本 Łódź"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("👩🏽\u200d🚀", "👩🏽\u200d🚀"),
        ("❤\ufe0f\u200d🔥", "❤\ufe0f\u200d🔥"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("[/b] 'quoted' \\ %s {x}", "[/b] 'quoted' \\ %s {x}"),
    ],
)
def test_a_name_is_trimmed_and_written_in_one_way(text: str, name: str) -> None:
    assert clean_name(text, MAX) == name


@pytest.mark.parametrize("text", ["", " ", "\u00a0\u2003", "\u3164", "\u2800 \u2800", "\u0301"])
def test_a_name_without_a_visible_character_is_refused(text: str) -> None:
    with pytest.raises(BadText, match="at least 1 visible character"):
        clean_name(text, MAX)


def test_every_invisible_character_is_refused_between_letters_and_at_the_ends() -> None:
    """Joiners too: between Latin letters they only make two names that look alike."""
    for character in filter(
        lambda c: unicodedata.category(c) in INVISIBLE, map(chr, range(0x3000))
    ):
        ends = () if character in BLANKS else (f"{character}b", f"a{character}", f"日{character}")
        for text in (f"a{character}b", *ends):
            with pytest.raises(BadText, match=f"U\\+{ord(character):04X}"):
                clean_name(text, MAX)


@pytest.mark.parametrize("character", ["\ue000", "\U000e0041", "\U0010ffff", "\ud800", "\ufeff"])
def test_every_invisible_character_beyond_the_first_planes_is_refused(character: str) -> None:
    with pytest.raises(BadText):
        clean_name(f"a{character}b", MAX)


def test_a_description_keeps_its_lines_and_may_be_empty() -> None:
    assert clean_description(" one\r\ntwo\tthree\n", MAX) == "one\ntwo\tthree"
    assert clean_description(" ", MAX) == ""


@pytest.mark.parametrize("character", ["\r", "\x1b", "\x00", "\u2028", "\u202e", "\x9b"])
def test_a_description_has_no_other_control_character(character: str) -> None:
    with pytest.raises(BadText):
        clean_description(f"a{character}b", MAX)


@given(st.text(st.characters(exclude_categories=INVISIBLE), max_size=MAX))
def test_a_clean_name_stays_as_it_is(text: str) -> None:
    name = clean_name(f"x{text}", MAX * MAX_DECOMPOSED)
    assert clean_name(name, MAX * MAX_DECOMPOSED) == name == name.strip()
    assert unicodedata.is_normalized("NFC", name)


@pytest.mark.parametrize("length", [MAX + 1, MAX_DECOMPOSED * MAX + 1, 100_000])
def test_a_long_name_names_the_limit(length: int) -> None:
    with pytest.raises(BadText) as raised:
        clean_name("é" * length, MAX)
    assert raised.value.limit == MAX


def test_marks_in_the_worst_order_take_no_time_to_speak_of() -> None:
    """To bring them into order takes time that grows with the square of their number."""
    marks = "\u0301\u0316" * (sys.maxunicode // 2)
    started_at = time.process_time()
    for text in (f"a{marks[: 2000 * MAX_DECOMPOSED - 1]}", f"a{marks}"):
        with pytest.raises(BadText):
            clean_description(text, 2000)
    assert time.process_time() - started_at < 0.05
