"""The promises of the local stack and of compose."""
