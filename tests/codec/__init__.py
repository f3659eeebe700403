"""Tests of the codec: bytes in, events out, and what never gets through."""
