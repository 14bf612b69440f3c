"""Metric-learning losses: embeddings and image ids become a scalar."""
