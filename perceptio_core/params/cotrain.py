"""Parameters of co-training. Where the paper's are not known to us, the profiles of its sizes follow Sa2VA, and say so."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from perceptio_core.params.base import Section


class LearningRates(Section):
    """Base learning rates of AdamW by what they train (Sa2VA uses one, 4e-5, for everything; the split is ours)."""

    adapters: PositiveFloat
    """LoRA matrices."""
    added_rows: PositiveFloat
    """The rows of the added tokens. They start far from what the frozen head calls likely; a rate several times the others'
    lets them settle before anything else has to move for their sake."""
    projector: PositiveFloat
    """From the vision tower to the language model."""
    vision_tower: PositiveFloat
    """The vision tower, where `train_vision_tower` lets it learn; a high rate takes from the language model what it could
    already find in the picture."""
    prompt: PositiveFloat
    """The MLP from `[SEG]` to a prompt of SAM2."""
    mask_decoder: PositiveFloat
    """SAM2's mask decoder. Long before `[SEG]` points anywhere, a decoder that learns fast has learned to answer with the
    empty mask, from which it hardly comes back."""


class LossWeights(Section):
    """Weights of the losses in the sum that is minimised; Sa2VA's are 2.0 and 0.5 for `seg_ce` and `seg_dice`; the others
    are ours.
    """

    llm: NonNegativeFloat
    seg_ce: NonNegativeFloat
    seg_dice: NonNegativeFloat
    marker: NonNegativeFloat
    token: NonNegativeFloat
    count: NonNegativeFloat
    reconstruction: NonNegativeFloat
    """The squared error of depth maps is a hundredth of a cross-entropy. In mini, 20 in place of 1 halves the steps to the
    same depth losses, and the masks hardly learn."""


class Spans(Section):
    """Which perception tokens the assistant writes before it answers; with neither, the model is the control. A row of the
    mixture can name fewer for its task.
    """

    segmentation: bool
    depth: bool


class Lora(Section):
    """Low-rank adapters on the language model (Sa2VA: r 128, alpha 256, dropout 0.05)."""

    r: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(ge=0, lt=1)


Span = Literal["segmentation", "depth"]


class TaskShare(Section):
    """A task's row in the mixture; a plain number stands for a row of this weight."""

    weight: NonNegativeFloat
    """Relative to the other tasks' in the samples that a step draws."""
    spans: tuple[Span, ...] | None = None
    """What its answers write before their text, and are supervised on: null, all that `cotrain.spans` has. A span that is not
    named is not in its sequences (ours)."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_number(cls, row: Any) -> Any:
        return {"weight": row} if isinstance(row, int | float) and not isinstance(row, bool) else row

    @field_validator("spans", mode="before")
    @classmethod
    def _of_a_list(cls, spans: Any) -> Any:
        return (
            tuple(spans) if isinstance(spans, list) else spans
        )  # what a validator before this one touched is no JSON any more

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if self.spans is not None and len(set(self.spans)) < len(self.spans):
            raise ValueError(f"spans must name segmentation and depth at most once each, not {list(self.spans)}")
        return self


class TaskMixture(Section):
    """How the samples that a step draws are divided among the tasks, and which spans those of each task write.

    What the weights come to in epochs of a task's samples, `cotrain` says before its first step and in its metrics.
    """

    referring: TaskShare
    conversation: TaskShare
    marker: TaskShare
    depth_map: TaskShare
    reading: TaskShare = TaskShare(weight=0.0)
    """Marked pictures, with or without kept depth-order labels, and a question for the depth code at each point (ours). It
    needs no label, and teaches to look up in the depth span what a marker stands on."""

    @property
    def weights(self) -> dict[str, float]:
        """Relative weight by task."""
        return {task: share.weight for task, share in self._rows()}

    @property
    def spans(self) -> dict[str, tuple[Span, ...]]:
        """Of the tasks that have spans of their own, these."""
        return {task: share.spans for task, share in self._rows() if share.spans is not None}

    def _rows(self) -> list[tuple[str, TaskShare]]:
        return [(task, getattr(self, task)) for task in type(self).model_fields]


class MarkerQuestions(Section):
    """Which depth-order labels train: all, but where a study asks what the perception tokens are worth when labels are few,
    or of another kind than what is tested. The depth codes of other samples are not touched (ours).
    """

    limit: PositiveInt | None = None
    """At most this many marked pictures, drawn by the seed; null keeps all. A smaller limit keeps a part of what a larger one
    keeps."""
    points: Annotated[tuple[Annotated[int, Field(ge=2, le=5)], ...], Field(min_length=1)] = (2, 3, 4, 5)
    """Only pictures with one of these numbers of points."""
    kinds: Annotated[tuple[Literal["nearest", "comparison"], ...], Field(min_length=1)] = ("nearest", "comparison")
    """Of a marked picture's turns, the question for the nearest point, the comparisons of two points, or both."""
    first: Literal["nearest", "either"] = "nearest"
    """Which kind a marked picture's first turn is of: that for the nearest point, or of half of the pictures a comparison. What
    stands first after the depth codes is learned by place."""

    @model_validator(mode="after")
    def _has_a_choice(self) -> Self:
        if self.first == "either" and set(self.kinds) != {"nearest", "comparison"}:
            raise ValueError(f"first is either, but kinds names {self.kinds[0]} alone")
        return self

    @property
    def takes_every_picture(self) -> bool:
        """Whether no marked picture is left out for its points or its turns, the limit aside."""
        return set(self.points) == {2, 3, 4, 5} and "nearest" in self.kinds


ALL_MARKERS = MarkerQuestions()


class CotrainParams(Section):
    """The `cotrain` section; the `variants` section of a profile overrides single keys of it per variant."""

    steps: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt
    """Samples per optimizer step, over all ranks and micro-batches."""
    processes: PositiveInt
    """Processes that share each step on this machine, at most one per GPU where there are GPUs; on CPUs, two with a thread
    each get more out of two cores than one with two threads. Under torchrun or accelerate theirs count, not these."""
    accumulation: PositiveInt
    """Micro-batches per rank and optimizer step on `processes` ranks; raise it when memory is short. Where fewer ranks train,
    each takes more of them, so that none holds more samples at a time (`on_ranks`)."""
    sharding: Literal["none", "full"] = "none"
    """What each of several ranks keeps. none: the whole model (DDP); full: its part of every weight, gradient and optimizer
    state (FSDP2), so that more ranks need less memory each and exchange more. The result differs by the order of sums."""
    gradient_checkpointing: bool = False
    """Whether each layer of InternVL is computed a second time in the backward pass instead of being remembered: about a
    third more time for a fraction of the activations' memory."""
    learning_rates: LearningRates
    code_words: tuple[str, ...] = ()
    """Words of the base for levels, each a single token, the farthest first: the rows of the depth codes, which are in the
    order of nearness, start between theirs. None: they start like those of the other added tokens."""
    own_codes: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, at the end of training, in which the depth spans are read with the codes that the model itself would
    write; it grows evenly from 0 (scheduled sampling, arXiv 1506.03099; ours). The answer then learns
    how far the model's own codes can be trusted beside the picture. Such a step costs a forward pass more."""
    vision_start: float = Field(ge=0, lt=1)
    """Share of the steps before the projector and the vision tower begin to learn (Sa2VA: 0). From the first step on, they
    would answer the large early gradients of the added rows with an offset common to all image tokens, in which what the
    image shows drowns."""
    warmup: float = Field(ge=0, lt=1)
    """Share of the steps spent warming up (Sa2VA: 0.05)."""
    floor: float = Field(ge=0, le=1)
    """Factor on the learning rates that the cosine ends at (Sa2VA: 0)."""
    weight_decay: NonNegativeFloat
    beta2: float = Field(ge=0, lt=1)
    """AdamW's (Sa2VA: 0.999, which forgets a gradient after a thousand steps)."""
    clip: PositiveFloat
    """Largest gradient norm of each group of `learning_rates` (Sa2VA: 1, over all parameters)."""
    loss_weights: LossWeights
    spans: Spans
    order: tuple[Span, Span]
    """Order of the perception spans; the paper's is segmentation, then depth."""
    lora: Lora
    train_vision_tower: bool
    max_tiles: PositiveInt
    """Most tiles per image for the vision tower, the thumbnail on top (InternVL: 12); 1 = the whole image as one tile."""
    mixture: TaskMixture
    markers: MarkerQuestions = ALL_MARKERS
    """Which of the samples of the task `marker` are drawn from, and which of their turns."""
    shard_window: PositiveInt | None = None
    """Shards of a task whose samples are mixed with each other, in a walk over all; null mixes all of an epoch at once. For
    shards on a store, with a cache that does not hold them all: it should hold twice this number for each task of the mixture
    (ours)."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints: how much a killed run loses at most."""
    validate_every: PositiveInt
    """Steps between validations."""
    validation_batches: NonNegativeInt
    """Batches of `batch_size` validation samples per validation; 0 never validates."""
    num_workers: NonNegativeInt
    """Threads per rank that prepare batches; 0 prepares them between the steps."""
    seed: NonNegativeInt
    """The common one, but where a variant has its own: the same data, trained anew."""

    def on_ranks(self, count: int) -> Self:
        """These parameters with the `accumulation` of `count` ranks: the fewest micro-batches of at most the size meant here.

        Args:
            count: ranks that train, however many `processes` says.

        Raises:
            ValueError: `batch_size` does not divide among so many.
        """
        meant = self.processes * self.accumulation
        if self.batch_size % count:
            raise ValueError(f"cotrain.batch_size {self.batch_size} does not divide among {count} processes")
        parts = (part for part in range(max(count, meant), self.batch_size + 1) if self.batch_size % part == part % count == 0)
        return self.model_copy(update={"processes": count, "accumulation": next(parts) // count})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.batch_size % (self.processes * self.accumulation):
            parts = f"processes {self.processes} x accumulation {self.accumulation}"
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of {parts}")
        if set(self.order) != {"segmentation", "depth"}:
            raise ValueError(f"order must name segmentation and depth once each, not {list(self.order)}")
        weights, own_spans = self.mixture.weights, self.mixture.spans
        if not any(weights.values()):
            raise ValueError("mixture: at least one task needs a weight above 0")
        for task in ("depth_map", "reading"):
            if weights[task] and not self.spans.depth:
                raise ValueError(f"mixture.{task} must be 0 when spans.depth is false: its answers consist of the codes")
        for task, spans in own_spans.items():
            if weights[task] and (off := [span for span in spans if not getattr(self.spans, span)]):
                raise ValueError(f"mixture.{task}.spans names {off[0]}, but spans.{off[0]} is false: nothing writes it")
            if weights[task] and task in ("depth_map", "reading") and "depth" not in spans:
                raise ValueError(f"mixture.{task}.spans must name depth: its answers consist of the codes")
        return self
