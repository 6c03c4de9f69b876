"""Parameters of the stage `foundations`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from perceptio_core.params.base import Section

Repository = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class HubModel(Section):
    """A model on the Hugging Face hub, pinned to one commit: a branch's name would mean other weights tomorrow."""

    repo: Repository
    revision: Revision


class HubSam2(HubModel):
    """SAM2 as published: one checkpoint file, and the name of its configuration in the `sam2` package.

    Without these two the repository is read as `transformers` has it: config.json and safetensors.
    """

    checkpoint: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    config: str | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.checkpoint is None) != (self.config is None):
            raise ValueError("checkpoint and config belong together: give both, or none for transformers' Sam2Model")
        return self


class FoundationsParams(Section):
    """The pretrained models: bundled with the repository, or three from the hub."""

    bundled: str | None = None
    """Folder with internvl/, sam2/, depth_anything/ and the SHA256SUMS of all their files."""
    internvl: HubModel | None = None
    sam2: HubSam2 | None = None
    depth_anything: HubModel | None = None
    offline: str | None = None
    """Folder of models fetched beforehand, used instead of the hub: internvl/, sam2/, depth_anything/ as the hub serves
    them; may name environment variables, as in $PERCEPTIO_MODELS."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        hub = (self.internvl, self.sam2, self.depth_anything)
        if self.bundled is not None and (any(hub) or self.offline is not None):
            raise ValueError("bundled excludes internvl, sam2, depth_anything and offline")
        if self.bundled is None and not all(hub):
            raise ValueError("either bundled, or all of internvl, sam2 and depth_anything are required")
        return self
