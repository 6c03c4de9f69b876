"""One thin command per stage of the pipeline: parameters in, artifacts and metrics out.

Each runs alone from the repository root, ``python -m stages.<stage> --help``; ``dvc.yaml`` says what depends on what.
"""
