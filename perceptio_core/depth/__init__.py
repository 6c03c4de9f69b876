"""Depth: the teacher's maps, where they are kept, and the codebook that writes them as tokens."""
