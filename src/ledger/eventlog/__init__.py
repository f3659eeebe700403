"""The event log: records, the hash chain, the codec, and all SQL on `events`."""
