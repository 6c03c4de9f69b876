"""Publishes lineage as Prefect artifacts: a page per stage under a key of its own, and one of the whole pipeline per run.

A page is a version of its key, and there is one per record of dvc.lock: a stage that is up to date, or that made the same
bytes from the same inputs again, keeps the page that it has (unless only the new one can say how long it took). So the
versions of a key are the versions of the stage.
"""

import hashlib
import json
import logging
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

from pipeline.dag import locked
from pipeline.lineage.graph import LineageGraph
from pipeline.lineage.lock import StageRecord
from pipeline.lineage.pages import Facts, Page, key_of, run_page, stage_page
from pipeline.lineage.stage_pictures import Picture, pictures_of
from pipeline.results import numbers_in
from pipeline.server import show_report
from stages.common import StagePaths

_Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Publisher:
    """The pages of one profile on one server.

    Stages are published in an order in which each comes after those that it reads from, from several threads if they like.
    """

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.pages: dict[str, Page] = {}
        self.published: set[str] = set()
        """The stages whose page got a new version."""
        self._latest: dict[str, Page] = {}
        names = LineageGraph.from_lock().records
        with get_client(sync_client=True) as client:
            pages = client.read_latest_artifacts(
                artifact_filter=ArtifactCollectionFilter(
                    key=ArtifactCollectionFilterKey(any_=[key_of(profile, name) for name in names])
                )
            )
        for page in pages:
            facts = Facts.from_page(str(page.data))
            if facts is not None:
                self._latest[page.key] = Page(id=str(page.latest_id), facts=facts)

    def stage(self, name: str, *, downstream: Sequence[str], seconds: float | None, logger: _Logger) -> None:
        """Publish what dvc.lock now says of a stage, unless the latest version of its page says so already.

        Args:
            name: the stage; it has finished.
            downstream: the stages that read what it wrote.
            seconds: how long it ran, or None if it did not.
            logger: told when there are no pictures to show, and why.
        """
        with locked():
            graph = LineageGraph.from_lock()
        record, key = graph.records[name], key_of(self.profile, name)
        before = self._latest.get(key)
        numbered = [*(Path(out.path) / "summary.json" for out in record.writes), StagePaths(self.profile).measured(name)]
        facts = Facts(
            version=version_of(record),
            seconds=seconds,
            size=sum(out.size for out in record.writes),
            metrics={metric: value for file in numbered for metric, value in numbers_in(file).items()},
        )
        known = before is not None and before.facts.version == facts.version
        if before is not None and known and (seconds is None or before.facts.seconds is not None):
            self.pages[name] = before
            return
        markdown = stage_page(
            name,
            profile=self.profile,
            graph=graph,
            downstream=downstream,
            facts=facts,
            before=None if before is None else before.facts,
            pages=self.pages,
            pictures=self._pictures(name, logger),
            report=show_report(self.profile) if name == "report" else None,
        )
        self.published.add(name)
        identity = create_markdown_artifact(key=key, markdown=markdown, description=f"{name}, version {facts.version[:8]}")
        self.pages[name] = Page(id=str(identity), facts=facts, before=None if before is None else before.facts)

    def run(self, states: Mapping[str, str]) -> None:
        """Publish the page of the whole pipeline.

        Args:
            states: stage -> how it ended in this run.
        """
        graph = LineageGraph.from_lock()
        pages = dict(self.pages)
        for name, record in graph.records.items():  # a run of some stages leaves the others as they are
            latest = self._latest.get(key_of(self.profile, name))
            if latest is not None and latest.facts.version == version_of(record):
                pages.setdefault(name, latest)
        report = show_report(self.profile) if "report" in graph.records else None
        markdown = run_page(profile=self.profile, graph=graph, pages=pages, states=states, report=report)
        create_markdown_artifact(
            key=key_of(self.profile, "lineage"), markdown=markdown, description=f"The pipeline of profile {self.profile}"
        )

    def _pictures(self, name: str, logger: _Logger) -> list[Picture]:
        try:
            return pictures_of(name, profile=self.profile)
        except (OSError, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            # The stage has done its work: a page without pictures is no reason to call it failed.
            logger.warning("no pictures on the page of %s: %s: %s", name, type(error).__name__, error)
            return []


def version_of(record: StageRecord) -> str:
    """A hash of everything that dvc.lock says of a stage."""
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True).encode()).hexdigest()
