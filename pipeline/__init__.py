"""What drives the pipeline: the only place that knows both DVC and Prefect, and the ``perceptio`` command."""
