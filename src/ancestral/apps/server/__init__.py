"""`ancestral serve`: a page on the user's own machine, from the user's own model."""
