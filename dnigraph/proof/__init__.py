"""What a decoupled model is worth: checked, probed, measured."""
