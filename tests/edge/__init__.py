"""The edge: what strangers can send, and how slowly."""
