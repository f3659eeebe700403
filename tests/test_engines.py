"""What `make test-engines` reads of apt and pytest, and the table that it writes."""

from tests.engines import counts, mirror_of, with_row

PAGE = """# Tested

| Debian | tests |
|---|---|
| sid | 1 passed |
| trixie | 2 passed |

after
"""


def test_the_archive_is_debians_and_not_that_of_its_security_updates() -> None:
    targets = (
        "Node https://node.example/\nDebian http://a.example/debian-security/\n"
        "Debian http://a.example/debian/\n"
    )
    assert mirror_of(targets) == "http://a.example/debian/"
    assert mirror_of("Ubuntu http://a.example/ubuntu/\n") is None


def test_the_counts_of_all_runs_are_added_and_errors_are_failures() -> None:
    log = (
        "1 failed, 68 passed, 1 error in 142.96s (0:02:22)\n"
        "a line in between\n"
        "====== 7 passed, 2 deselected in 1.10s ======\n"
    )
    assert counts(log) == (75, 2)


def test_a_row_replaces_the_one_of_its_release_only() -> None:
    page = with_row(PAGE, "| sid | 3 passed |")
    assert page.count("| sid |") == 1
    assert "| sid | 3 passed |\n| trixie | 2 passed |\n\nafter\n" in page
