"""Experiment trackers: W&B without questions, and the same record of a run whatever the logger."""
