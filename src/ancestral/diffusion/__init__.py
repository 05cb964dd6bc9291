"""The mathematics: no input, no output."""
