"""Galleries, indexes, ranks and the metrics computed from them."""
