"""Sampling from a trained model; shares nothing with training."""
