"""Foreign checkpoints in the form that the rest of the library reads: InternVL, SAM2, AURORA's codebook, Sa2VA."""
