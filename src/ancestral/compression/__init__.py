"""A model as a codec: images as the bits that tell the reverse process which of its samples to draw."""
