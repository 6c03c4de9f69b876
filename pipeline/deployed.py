"""The flows that prefect.yaml deploys: the whole pipeline, and a stage with all that it reads from.

Whoever starts one, from Prefect's pages, its API or ``prefect deployment run 'stage/cotrain'``, gets the run that `perceptio
repro` would make in the checkout of the worker that takes it.
"""

from prefect import flow

from pipeline.settings import prepare_environment, select


@flow(name="pipeline")
def pipeline(profile: str | None = None, variants: list[str] | None = None, force: bool = False) -> None:
    """Every stage, from raw images to the report.

    Args:
        profile: to be made the active one; null: the active one.
        variants: to be trained and evaluated; null: those that are active.
        force: run every stage even if nothing has changed.

    Raises:
        ValueError: no such profile or variant, or an input that a stage will read cannot be read.
        RuntimeError: a stage failed; says which, and why.
    """
    _repro([], profile=profile, variants=variants, force=force)


@flow(name="stage", flow_run_name="{name}")
def stage(name: str, profile: str | None = None, variants: list[str] | None = None, force: bool = False) -> None:
    """One stage, and what it reads from.

    Args:
        name: such as evaluate, for all its active variants, or evaluate@full.
        profile: as for `pipeline`, and so are the others.
        variants: to be trained and evaluated.
        force: run this stage, not those before it, even if nothing has changed.

    Raises:
        ValueError: no such stage, profile or variant, or an input that a stage will read cannot be read.
        RuntimeError: a stage failed; says which, and why.
    """
    _repro([name], profile=profile, variants=variants, force=force)


def _repro(wanted: list[str], *, profile: str | None, variants: list[str] | None, force: bool) -> None:
    active = select(profile=profile, variants=variants)
    prepare_environment()
    from pipeline.dag import plan
    from pipeline.flow import reproduce
    from pipeline.machine import read_machine
    from pipeline.preflight import look_ahead
    from pipeline.terminal import Screen

    planned, machine = plan(wanted=wanted, force=force), read_machine()
    look_ahead(planned, profile=active, machine=machine)
    outcome = reproduce(planned, profile=active.name, limits=machine.limits, screen=Screen())
    if outcome.failures:
        raise RuntimeError(outcome.failures)
