"""Pooling: a set of vectors becomes one vector."""
