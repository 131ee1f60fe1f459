"""What the user says about where to cut, resolved to edges of the graph.

specs ─► names ─► edges ─► plan/partition           resolve: all specs of a user, with every misfit and note
  │                                                 cut_graph: the same, up to the plan
  └─► balance ─► cost ─► candidates ─► linear_partition ─► edges
      4 parts    of each where the     which of these places
                 node    line may be   are best
                         cut
"""
