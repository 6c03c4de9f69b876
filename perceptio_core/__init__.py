"""Perceptio: a vision-language model that writes down what it sees before it answers.

The library knows nothing of DVC or Prefect: ``stages`` turns it into commands, ``pipeline`` drives those.
"""

__version__ = "0.1.0"
