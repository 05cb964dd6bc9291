"""Losses, the variational bound, likelihoods, and how times are drawn."""
