"""Shards: what is said about a picture, joined by its key and written as WebDataset tars."""
