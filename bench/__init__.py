"""The benchmark: made-up histories, loads, ceilings, a peer, the report, and comparisons."""
