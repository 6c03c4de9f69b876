"""A clone of this repository with the smoke profile active and nothing made yet."""

import shutil
import subprocess
from pathlib import Path

from fake_pipeline import REPOSITORY


def clone(folder: Path) -> Path:
    """Make a new git repository with the files that a clone of this one would have, uncommitted ones included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if name != "dvc.lock" and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    (folder / "params.yaml").write_text("profile: smoke\nvariants: [full]\n")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for step in (("init", "-q"), ("add", "-A"), (*author, "commit", "-q", "-m", "As cloned")):  # DVCLive asks for the commit
        subprocess.run(["git", *step], cwd=folder, check=True)
    return folder
