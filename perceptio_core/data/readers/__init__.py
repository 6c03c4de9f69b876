"""Data sets in their official layouts, read as records."""
