"""Items and splits: what is retrieved, before any network has seen it."""
