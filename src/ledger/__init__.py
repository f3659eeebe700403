"""The write side: the pure core, the codec, the inbox, the store and the single writer."""
