"""Checks of a ledger that is there: decisions made again, what-if."""
