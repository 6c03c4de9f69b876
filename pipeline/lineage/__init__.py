"""What came from what: read from dvc.lock, told on the command line, and published as pages of the Prefect UI."""
