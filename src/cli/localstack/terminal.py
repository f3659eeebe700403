"""What `ledger up` shows: a spinner while it works, a line for each step done and each mishap."""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Terminal:
    """Lines on the console; a terminal that has gone away is no reason to stop working."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._under_way: list[str] = []

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Show a spinner, with the steps under way, until the block ends."""
        with self._console.status("starting …") as self._status:
            yield
        self._status = None

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """Name a step while it's under way; then a line says how long it took."""
        started_at = time.monotonic()
        self._under_way.append(label)
        self._show()
        yield
        self._under_way.remove(label)
        self._show()
        self.done(f"{label} [dim]{time.monotonic() - started_at:.1f} s[/]")

    def doing(self, text: str) -> None:
        """Say what takes long before it's done."""
        self._print(f"[dim]…[/] {escape(text)}")

    def done(self, markup: str) -> None:
        """A step is done."""
        self._print(f"[green]✓[/] {markup}")

    def warn(self, text: str) -> None:
        """Something went wrong and is being mended."""
        self._print(f"[yellow]![/] {escape(text)}")

    def refuse(self, text: str) -> None:
        """Why it can't go on."""
        self._print(f"[red]✗[/] {escape(text)}")

    def stopping(self) -> None:
        """A signal came."""
        self._print("[dim]stopping …[/]")

    def say(self, text: str) -> None:
        """Plain text."""
        self._print(escape(text))

    def _show(self) -> None:
        if self._status and self._under_way:
            self._status.update(f"{escape(', '.join(self._under_way))} …")

    def _print(self, markup: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(markup)
