"""The command ``perceptio``; each module has the sub-commands of one kind, and brings what is slow only when one runs."""

from pipeline.cli.app import main

__all__ = ["main"]
