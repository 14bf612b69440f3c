"""A look at an installation, its data and its disks: what is there, what is not, and what to type next."""
