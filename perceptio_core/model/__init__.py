"""The model in the manner of transformers: configuration, modeling, processing, losses, decoding and inference."""
