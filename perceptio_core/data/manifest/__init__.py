"""The manifest: every image once, every record, what went to quarantine, what is held out of training."""
