"""Replays: recorded events once more, as lines, as files, or into the inbox of another ledger."""


class ReplayRefused(Exception):
    """The replay can't be what was asked for."""


class ReplayStopped(Exception):
    """The replay ended before its end, and says how far it came."""
