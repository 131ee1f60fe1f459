"""Who trains a decoupled model."""
