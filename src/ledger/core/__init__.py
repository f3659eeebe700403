"""The pure core: events, state, pricing, decide and evolve, laws. No clock, no chance, no I/O."""
