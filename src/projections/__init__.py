"""The read side: views that are functions of the ledger, and the projector that keeps them."""
