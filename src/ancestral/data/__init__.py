"""Images in, from anywhere."""
