"""The local stack: private RabbitMQ and MariaDB or MySQL, and our processes, kept running."""

from pathlib import Path

# The configuration that the local stack shares with compose.
DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


class StackRefused(Exception):
    """The stack can't start; the message is one sentence that names the remedy."""
