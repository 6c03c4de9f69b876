"""One thin command per stage of the pipeline: parameters in, artifacts and metrics out.

Each runs alone from the repository root, ``python -m stages.<stage> --help``; ``dvc.yaml`` says what depends on what.
"""

import multiprocessing

from perceptio_core.tied import tie_worker

if multiprocessing.parent_process() is not None:
    # A worker of a stage's pool imports its stage anew, which takes seconds; this is the first line of it.
    tie_worker()
