"""The pure core: events, state, pricing, decide, evolve, invariants. No clock, chance or I/O."""
