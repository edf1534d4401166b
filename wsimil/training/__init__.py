"""From labelled bags to a model: the loop, its schedule, its checkpoints."""
