"""Cut a model into parts: passes from graph to graph, or to a plain value. Nothing here knows of learning.

    model ──► capture/ ──► graph/ ──► cuts/ ──► plan/ ──► parts/ ──► modules that `dnigraph.decoupled` runs
                 │            │         │         │
                 ▼            ▼         ▼         └──► draw/
             sandbox/     what is    what the          a picture
             runs it,     captured   user says
             puts it back            becomes edges

| room     | is                                                                | begin with                |
|----------|-------------------------------------------------------------------|---------------------------|
| graph    | what a captured graph is, and what is written on its nodes        | nodes, captured_graph     |
| sandbox  | run a model, see what came of it, put it back as it was           | snapshot, runs            |
| capture  | from a model and one call of it to a graph, by a ladder of ways   | ladder, record, annotate  |
| cuts     | from what the user says to edges of the graph                     | specs, names, resolve     |
| plan     | from edges to parts and the values that cross between them        | plan, partition           |
| parts    | from a plan to a graph for each part, with boundaries between     | split, boundary_nodes     |
| draw     | from a plan to a picture                                          | items, columns, svg       |

Imports point down only: errors ◄ graph ◄ sandbox ◄ capture, and graph ◄ plan ◄ cuts, parts, draw.
"""
