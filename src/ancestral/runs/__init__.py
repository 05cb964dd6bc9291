"""A model on disk: configuration, checkpoint, build, open."""
