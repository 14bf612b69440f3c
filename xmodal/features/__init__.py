"""Sets of vectors on disk and in batches."""
