"""The steps of `partition`, each on the nodes' positions in the graph.

facts ─► ties ─► units ─► moves ─► levels ─► draft ─► prune ─► reach ─► place ─► crossings
(guess)                                                                         (naming)
"""
