"""Lightning callbacks: retrieval validation, pictures, run records."""
