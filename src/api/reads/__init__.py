"""Reads: of the views at a position, of earlier states, of the ledger as a stream."""
