"""A report that explains a model by its own numbers: `ancestral explain`."""
