"""`ledger verify`: the ledger decided again, the views compared with it, and the kept proofs."""
