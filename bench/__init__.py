"""What measures the ledger: made-up histories, loads, a peer, and the report."""
