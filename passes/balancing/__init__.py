"""The steps of `balance.choose`: what nodes cost, where their line may be cut, and which of these places are best.

graph ─► cost ─► line ─► chain ─► edges
"""
