"""Pretraining of the small foundation models that profile mini ships (ours)."""
