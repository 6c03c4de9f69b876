"""What a run shows at its end: the report's headline table in plain text."""

import json
from pathlib import Path

import pytest

from perceptio_core.metrics import Metric, write_metrics
from pipeline.results import headline


def test_the_table_at_the_end_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report, measured = tmp_path / "artifacts/t/report", tmp_path / "artifacts/t/measured"
    report.mkdir(parents=True)
    measured.mkdir()
    metrics = [
        Metric(name="mme_perception", value=1285.04, low=1250.0, high=1300.0, n=160, chance=300.0, protocol="p"),
        Metric(name="control_hardblink_3", value=61.5, low=55.0, high=68.0, n=200, chance=33.3333, protocol="p"),
        Metric(name="hardblink_3", value=66.5, low=60.0, high=72.5, n=200, chance=33.3333, protocol="p"),
        Metric(name="hardblink_majority", value=30.0, n=600, protocol="p"),
        Metric(name="of_mine", value=0.25, protocol="p"),
    ]
    write_metrics(report, metrics)
    took = {"seconds": 95.0, "samples_per_second": 12.34, "peak_memory_gib": 1.25}
    (measured / "cotrain@full.json").write_text(json.dumps(took))
    assert headline("t").splitlines() == [
        "                             value  95 % interval  chance    n  control",
        "Depth order: HardBLINK",
        "  3 points                    66.5   60.0 to 72.5    33.3  200     61.5",
        "  baseline: majority letter   30.0                         600",
        "General questions",
        "  MME perception              1285   1250 to 1300   300.0  160",
        "More",
        "  of_mine                     0.25",
        "cotrain@full: 1m35s, 12.3 samples/s, 1.2 GiB at the peak",
        "",
        f"report: {report / 'report.html'}",
    ]
