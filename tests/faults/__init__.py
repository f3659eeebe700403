"""Real processes, real faults, a seeded workload, and a checker that reads the ledger."""
