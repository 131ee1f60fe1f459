"""From the edges to cut to a plan: which parts there are, which values cross between them, and why.

The steps of `partition`, each on the nodes' positions in the graph:

graph/facts ─► aliasing ─► part_graph ──────────────► placement ─► partition ─► plan
what a node    what must   units of tied nodes,       where sizes  merges       its table,
reads, writes  stay        levels, parts, their       and masks    parts, finds its JSON
and shares     together    order; cuts moved          are made     what crosses
"""
