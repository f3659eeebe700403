"""The load tests of the contract, with smaller numbers."""
