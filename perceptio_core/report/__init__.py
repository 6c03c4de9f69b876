"""The report: one self-contained HTML page from the metrics, curves and panels of a finished run."""
