"""From a plan to a graph for each part.

split: a graph per part, and a top graph that runs them    boundary_nodes: boundaries go into it, and out again
lift: the weights of the parts become arguments, for graphs that Dynamo captured
"""
