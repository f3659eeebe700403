"""The `ledger` command, as a process."""
