"""Answers and models to and from other harnesses."""
