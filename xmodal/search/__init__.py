"""A trained model's embeddings as a saved index that is searched, enlarged and shown."""
