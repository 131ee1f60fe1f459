"""What the user says about where to cut, resolved to edges of the graph.

specs ─► names ─► edges ─► plan/partition    specs.resolve: all specs of a user, with every misfit and note
  │                                          specs.cut_graph: the same, up to the plan
  └─► balance ─► candidates ─► linear_partition ─► edges
      4 parts    what nodes    which of these places
                 cost, and     are best
                 where to cut

places lists all that could be named, with what each cut would cost.
"""
