"""From the edges to cut to a plan: which parts there are, which values cross between them, and why.

The steps of `partition`, each on the nodes' positions in the graph:

graph/facts ─► aliasing ─► units ─────► part_graph ─► merge ─► placement ─► crossings ─► plan
what a node    what must   tied nodes   levels,       parts    where sizes  which values its table,
reads, writes  stay        as one, and  parts, their  that     and masks    cross, their its JSON
and shares     together    cuts moved   order         may go   are made     names        (amounts)
               or in order behind them
"""
