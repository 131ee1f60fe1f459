"""From a plan to a graph for each part."""
