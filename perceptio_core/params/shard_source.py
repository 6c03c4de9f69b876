"""Where the training reads its shards, if not from the folder of `joint_shards`.

No section of a profile: it is true of one machine, and decides nothing of what is computed. The launcher of the stages takes
it from machine.yaml and hands it to them in the variable PERCEPTIO_SHARDS.
"""

import json
import os
from pathlib import Path
from typing import Self

from pydantic import Field, PositiveFloat

from perceptio_core.params.base import Section

VARIABLE = "PERCEPTIO_SHARDS"
STORE_URL = "^s3://[^/]+"


class ShardSource(Section):
    """A store of shards, and the cache on the way from there.

    Attributes:
        store: ``s3://bucket[/prefix]``, what ``perceptio shards push`` was given.
        cache: folder on a local disk.
        cache_gib: what it may hold, in GiB, shards on their way included; at least the largest shard. Where less than one
            shard per reading thread fits, those that are brought at the same time exceed it.
    """

    store: str = Field(pattern=STORE_URL)
    cache: Path
    cache_gib: PositiveFloat

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the variable PERCEPTIO_SHARDS says, as JSON; None if it is not set.

        Raises:
            ValueError: an unknown key, a wrong type or a refused value; says what is allowed.
        """
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}: expected JSON with the keys {', '.join(cls.model_fields)}; {error}") from error
        return cls.from_mapping(values, where=VARIABLE)
