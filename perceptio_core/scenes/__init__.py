"""The procedural world behind the embedded default: scenes, their exact depth and masks, and their language (ours)."""
