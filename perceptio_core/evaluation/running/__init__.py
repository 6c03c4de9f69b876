"""Asking a model the questions of every benchmark, and writing down answers and scores."""
