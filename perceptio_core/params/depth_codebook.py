"""Parameters of the stage `depth_codebook`. Where AURORA says a value the text names it; the rest is ours."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from perceptio_core.params.base import Section


class DepthCodebookParams(Section):
    """The `depth_codebook` section."""

    pretrained: str | None = None
    """Folder of a finished codebook, as `perceptio convert codebook` or this stage makes one: it is scored on this profile's
    maps and used as it is. Its num_codes, resolution, widths and dim must be those below; what concerns training has no
    effect then. May name environment variables, as in $PERCEPTIO_MODELS/codebook. Null: one is trained."""
    num_codes: Annotated[int, Field(ge=2)]
    """K (AURORA: 128)."""
    resolution: PositiveInt
    """R, pixels a side of the square maps (AURORA: 320)."""
    widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Channels after each stride-2 convolution (AURORA: 16, 32, 64, 128, 256); R / 2 ** len(widths) codes a side."""
    dim: PositiveInt
    """D, length of a code vector (AURORA: 512)."""
    decay: Annotated[float, Field(gt=0, lt=1)]
    """Of the moving averages of the codebook (AURORA: 0.99)."""
    continuous_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps before the codebook starts, in which the decoder reads unquantized vectors."""
    restart_every: PositiveInt
    """Steps between restarts of dead codes."""
    restart_below: Annotated[float, Field(ge=0, lt=1)]
    """A code is dead when it serves less than this share of its fair part."""
    steps: PositiveInt
    batch_size: PositiveInt
    """Maps a step over all ranks (AURORA: 8)."""
    learning_rate: PositiveFloat
    """Peak rate of Adam, warmed up for 20 steps, then a cosine to 2 % (AURORA: 3e-4, falling by 2 % every 500 steps)."""
    checkpoint_every: PositiveInt
    validation_maps: PositiveInt
    """At most this many maps of the validation split are scored."""
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.resolution % 2 ** len(self.widths):
            raise ValueError(
                f"resolution {self.resolution} must be a multiple of {2 ** len(self.widths)}, the stride of widths"
            )
        return self
