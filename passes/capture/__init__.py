"""From a model and one call of it to a captured graph.

`ladder` lists the ways to do so, its rungs, and climbs them: `record/` first, then `export`, which `export_proof` puts
to the test, `symbolic` by choice, and at the end `module_graph`, which only sees what modules hand each other, through
`module_hooks`. `dynamo_graph` takes what torch.compile captured. `graph_rewriter` serves those that begin with a graph
that torch made. Then `annotate` and `profile` run a graph and write on its nodes what they see.
"""
