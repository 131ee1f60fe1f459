"""Run a model, see what it did, and put it back as it was."""
