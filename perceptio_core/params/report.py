"""Parameters of the report."""

from pydantic import PositiveInt

from perceptio_core.params.base import Section


class ReportParams(Section):
    """The `report` section."""

    title: str
    """Heading of the page."""
    caveat: str
    """What a reader must know before comparing this profile's figures with published ones; stands above the table."""
    max_panels: PositiveInt
    """Most qualitative panels on the page, taken in turn from every benchmark."""
