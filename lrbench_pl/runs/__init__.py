"""Train one run: specification, checks, construction, training, result and folder."""
