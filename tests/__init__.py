"""The tests: one package, so that none of its parts is taken for the code it tests."""
