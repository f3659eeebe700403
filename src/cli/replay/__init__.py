"""Replays of recorded events: printed as lines, or submitted again to another ledger."""


class ReplayRefused(Exception):
    """The replay that was asked for is not possible."""


class ReplayStopped(Exception):
    """The replay failed before its end; the message names the last position that it handled."""
