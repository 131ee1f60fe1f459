"""The main rung of the capture ladder: run the model and write down each torch-level call."""
