"""The steps of `partition`: what nodes do, what must stay together, which parts there are, what stands where.

    facts ─► ties ─► units ─► order ─► prune ─► place ─► crossings
"""
