"""What a command that takes a while shows meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.running import err


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far the work is; what it gives is called with how many more are done.

    It is drawn on standard error, and only on a terminal, so that output stays clean.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    shown = Progress(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal
    )
    with shown:
        task = shown.add_task(what, total=total)
        yield lambda more: shown.advance(task, more)
