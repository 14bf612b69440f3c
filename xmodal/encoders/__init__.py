"""Frozen networks: one item becomes a set of vectors."""
