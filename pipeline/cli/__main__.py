"""``python -m pipeline.cli`` is ``perceptio``."""

from pipeline.cli.app import main

main()
