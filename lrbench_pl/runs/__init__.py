"""One run: specification, configuration, construction, training, result, folder."""
