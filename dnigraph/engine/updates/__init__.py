"""Which parameters learn together: their gradients, their optimisers, and when these step."""
