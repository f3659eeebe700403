"""Tests of the pure core: no server, no clock, no I/O."""
