"""The write side against the real broker and the real database."""
