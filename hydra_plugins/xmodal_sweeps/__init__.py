"""Hydra looks for sweepers in packages within `hydra_plugins` alone."""
