"""Segmentation: SAM2 as a frozen eye and a trainable mask decoder, the bridge from `[SEG]` to it, and the mask losses."""
