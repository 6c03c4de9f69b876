"""Parameters of the stage `joint_shards`: how many samples of each task are made of an image. All are ours."""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from perceptio_core.params.base import Section

PerImage = Annotated[int, Field(ge=1)] | None


class JointShardsParams(Section):
    """The `joint_shards` section."""

    seed: NonNegativeInt
    images_per_shard: PositiveInt
    """Images in one tar; what a killed run loses at most, for each worker."""
    referring_per_image: PerImage
    """At most this many referring records of an image, drawn at random; null keeps all."""
    expressions_per_conversation: PositiveInt
    """Referring records of an image that make one sample, a turn each (Sa2VA: 5). The picture and its depth codes are long,
    a turn is short: further expressions cost little."""
    describe_objects: bool = False
    """Whether the answer to an expression goes on with another expression for the same object: the longest that any data set
    has, and that no later turn of the conversation asks for, which it would tell which mask to copy. (The paper adds object
    descriptions to RefCOCO samples; where it has them from is not known to us. `sources.datasets.descriptions` reads a
    captioner's.) Only expressions that are read for training or validation serve, none of a test split."""
    conversation_per_image: PerImage
    """The same for conversation records."""
    markers_per_image: NonNegativeInt
    """Depth-order questions made from the teacher's depth map; an image that admits no balanced set of points gives fewer."""
    marker_counts: Annotated[tuple[Annotated[int, Field(ge=2, le=5)], ...], Field(min_length=1)]
    """Number of points of a question, drawn from this list; a number that stands twice is drawn twice as often."""
    comparisons_per_marker_question: NonNegativeInt
    """Further turns of such a sample, each about two of its points."""
    depth_map_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the images that also give a sample whose answer is the depth codes alone."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = 2
    """Processes; 1 works in the stage's own, null: one per processor core that is there."""
