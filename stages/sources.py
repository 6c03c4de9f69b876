"""Stage `sources`: the manifest of all images and records, of the rendered world or of the user's folders."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import PIL

from perceptio_core import rgb
from perceptio_core.data import images
from perceptio_core.data.manifest.collect import collect
from perceptio_core.data.manifest.manifest import DATA
from perceptio_core.engine import cores
from perceptio_core.metrics import counted, write_metrics
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.scenes.writers import write_world
from stages.common import StagePaths, fingerprint, publish, stage_arguments
from stages.engines import engine

DESCRIPTION = """Make the manifest of all training images and records.

Reads   the parameters' section `sources`; with `root`, the data sets below that folder (never written to).
Does    with `root`, first looks at every input of every stage (stages.inputs), and ends with 1 where one cannot be read;
        with `render`, renders the procedural world and writes it in the official layouts; then, for rendered and real
        data alike, reads every data set, decodes every image once, keeps train and val images apart, and the
        test images of `held_out` out of training. A killed run goes on where it stood; with other data sets or test images,
        pictures that earlier runs have looked at are not decoded again (.work/<profile>/sources-pictures).
Writes  artifacts/<profile>/sources/
          root/             the rendered world (only with `render`)
          images.parquet    image_key, path below the data root, width, height, sha256, split
          records.parquet   record_id, image_key, split, task, turns, expression, masks (RLE), source
          quarantine.jsonl  {file, reason} for everything that was left out
          data.json         per split, task and data set the records that were kept, and those left out by reason
          metrics.json, summary.json   counts
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params = values.section("sources", SourcesParams)
    if params.render is None:
        # What later stages will read, too. A process of its own: what reads benchmarks is none of what this stage depends on.
        look = subprocess.run([sys.executable, "-m", "stages.inputs", "--params", str(arguments.params)], check=False)
        if look.returncode != 0:
            sys.exit(look.returncode)
    workers = params.workers or cores()
    paths = StagePaths(values.profile)
    paths.claim("sources")
    work = paths.work("sources", fingerprint(params))
    out = work / "out"
    out.mkdir(exist_ok=True)
    if params.render is not None:
        root, journals = out / "root", work
        write_world(root, params=params.render, workers=workers)
    else:
        root = params.expanded_root()
        # Kept for the next run: what is in a picture is the same whatever else the profile says.
        opened_by = [Path(images.__file__), Path(rgb.__file__), PIL.__version__]
        journals = paths.work("sources-pictures", fingerprint(str(root.resolve()), images.MAX_PIXELS, *opened_by))
    counts = collect(
        params.datasets,
        root=root,
        work=work,
        journals=journals,
        out=out,
        max_pixels=images.MAX_PIXELS,
        workers=workers,
        engine=engine(workers=workers),
        held_out=params.held_out,
    )
    data = counts.pop("data")
    (out / DATA).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    write_metrics(out, counted(dict(sorted(counts.items()))))
    publish(out, paths.out("sources"))
    shutil.rmtree(work)
    log = logging.getLogger("sources")
    log.info(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    records = sum(count for name, count in counts.items() if name.startswith("source_"))
    pictures = f"{counts['images_train']} pictures to train with, {counts['images_val']} to validate"
    log.info("%s, %d records, %d in quarantine", pictures, records, counts["quarantined"])


if __name__ == "__main__":
    main()
