"""Parameters of the stage `teacher_depth` (ours)."""

from pydantic import PositiveInt

from perceptio_core.params.base import Section


class TeacherDepthParams(Section):
    """The `teacher_depth` section."""

    batch_size: PositiveInt
    """Square images a forward pass. Images that go in at other sizes have batches of their own, with no more pixels."""
    long_side: PositiveInt
    """Maps are stored at the image's size, or scaled down to this many pixels on the longer side. It has nothing to do with
    the size at which the teacher sees the image, which its checkpoint sets."""
    images_per_shard: PositiveInt
    """Maps in one tar; what a killed run loses at most."""
    workers: PositiveInt
    """Threads that decode images ahead of the model and encode maps behind it."""
