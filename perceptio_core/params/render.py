"""How much of which procedural world is rendered."""

from typing import Annotated

from pydantic import Field

from perceptio_core.params.base import Section

Scenes = Annotated[int, Field(ge=1, le=200_000)]
Items = Annotated[int, Field(ge=1, le=1000)]
NewScenes = Annotated[int, Field(ge=0, le=250)]  # more scenes are looked through for each question
FurtherItems = Annotated[int, Field(ge=0, le=1000)]


class RenderParams(Section):
    """Sizes of the rendered data sets and benchmarks; all are ours.

    There are 256 disjoint worlds of scenes; within each, the scenes of train, val and test and of the
    benchmarks never meet.
    """

    world: Annotated[int, Field(ge=0, lt=256)] = 0  # which of them, whatever the seed of a run
    size: Annotated[int, Field(ge=64, le=1024)] = 128  # side of the square pictures, pixels
    train: Scenes  # scenes with referring expressions and conversations
    val: Scenes  # scenes with referring expressions
    test: Scenes  # the same, for the benchmark
    hardblink: Items = 200  # questions in each of the subsets with 3, 4 and 5 points
    mmbench: Items = 80  # questions, each with all rotations of its options
    seedbench: Items = 150  # questions
    mme: Items = 40  # pictures in each subtask, with two questions each
    # Further tests, for studies; 0 leaves one out, and the rest of the world is the same bytes with it or without.
    new_scenes: NewScenes = 0  # scenes of refcoco_new, and questions in each subset of hardblink_new: an unlike world
    pairs: FurtherItems = 0  # questions in each subset of hardblink_pairs, about two of the points

    def stamp(self) -> str:
        """What marks a world as one of these parameters: one line of JSON, without the further tests that are left out."""
        left_out = {name for name in ("new_scenes", "pairs") if getattr(self, name) == 0}
        return f"{self.model_dump_json(exclude=left_out)}\n"
