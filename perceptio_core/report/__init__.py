"""The report: one self-contained HTML page from the metrics, curves, panels and lock file of a finished run."""
