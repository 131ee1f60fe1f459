"""What the user says about where to cut, resolved to edges of the graph."""
