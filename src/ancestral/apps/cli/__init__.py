"""The commands of `ancestral`, by what they are for."""
