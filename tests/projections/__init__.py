"""The read side against the real broker and the real database."""
