"""The local stack: private RabbitMQ and MariaDB or MySQL, and our processes under supervision."""

from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
"""Configuration that the local stack shares with compose."""


class StackRefused(Exception):
    """The stack can't start; the message is one sentence that names the remedy."""
