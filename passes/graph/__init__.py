"""What a captured graph is.

`nodes`: what its nodes may call and what is written on them. `captured_graph`: the graph, its constants and how the
model's result is built. `guards`: how far it can be trusted for a further call. `facts`: what is known of each node, as
one value. `mark`: `dg.cut(x)`. Below them `pytrees`, any nesting taken apart and put together, `walk`, all that an
object holds, and `equality`.
"""
