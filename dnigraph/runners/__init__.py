"""Training of a decoupled model part by part: the runner Local, its optimisers, its steps, its checkpoints."""
