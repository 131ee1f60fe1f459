"""Capture: a model and one example call become a graph."""
