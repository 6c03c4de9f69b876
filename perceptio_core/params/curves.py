"""Where a training's curves are shown, besides DVCLive's files: by the variable PERCEPTIO_CURVES.

No section of a profile: it is true of one machine, and decides nothing of what is computed. The launcher of the stages takes
it from machine.yaml.
"""

VARIABLE = "PERCEPTIO_CURVES"
PLACES = ("tensorboard", "wandb")
