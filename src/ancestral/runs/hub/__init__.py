"""Models elsewhere: the hub, published folders, diffusers."""
