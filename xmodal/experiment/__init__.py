"""The experiment around the model: from a configuration to parts, features, a trained model and its record."""
