"""The sub-commands of `xmodal`, a file each: `add` declares it, `run` does it. Importing them imports no torch."""
