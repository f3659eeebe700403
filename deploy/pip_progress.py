"""Say in plain lines how far pip is: `pip … | python pip_progress.py LOG PACKAGES SITE`.

pip's own output goes into LOG; PACKAGES is how many there will be in the directory SITE.
"""

import signal
import sys
import threading
import time
from pathlib import Path

EVERY_S = 5.0


def say(line: str) -> None:
    """Print a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(log: Path, packages: str, site: Path) -> None:
    """Copy standard input to the log until it ends, with a line about it every five seconds."""
    started_at = time.monotonic()
    fetched, installs, warned = 0, False, False
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(EVERY_S):
            what = f"{fetched} of {packages} packages fetched"
            if installs:
                there = sum(1 for _ in site.glob("*.dist-info"))
                what = f"{there} of {packages} packages installed"
            say(f"  {what}, {time.monotonic() - started_at:.0f} s")

    threading.Thread(target=report, daemon=True).start()
    with log.open("w") as file:
        for line in sys.stdin:
            file.write(line)
            file.flush()
            fetched += line.startswith("Collecting ")
            installs = installs or line.startswith("Installing collected packages")
            if "Retrying (Retry(" in line and not warned:
                warned = True
                say("! the package index gives no answer: pip tries a few times")
    ended.set()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends pip, too, which says so
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
