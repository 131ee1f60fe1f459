"""From cut edges to a plan: which node stands in which part, and what crosses."""
