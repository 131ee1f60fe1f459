"""Cuts that cannot be made where the user put them move to the next place behind it."""

from ..errors import CutError
from ..graph.facts import Facts
from .aliasing import Memory, Pair, last_writer
from .units import Units


def movable(facts: Facts, known: Memory, units: Units, cuts: frozenset[Pair]) -> tuple[frozenset[Pair], list[str]]:
    """The cuts, with those inside a unit moved to the edges that leave it; and a note on each that moved.

        asked    conv ─┼─► relu_ ───► fc
        made     conv ───► relu_ ─┼─► fc

    What is taken out of a tuple stays with it, so a cut behind the tuple is one behind its items: that needs no note.

    Raises:
        CutError: nothing but the model's output follows. All such cuts are listed.
    """
    made = {(a, b) for a, b in cuts if units.of[a] != units.of[b]}
    notes: dict[int, str] = {}
    misfits: dict[int, str] = {}
    for a, b in sorted(cuts - made):
        leaving = _leaving(facts, units, a, b)
        made |= leaving
        past, why = _obstacle(facts, known, units, a)
        if not leaving:
            way_out = f"and nothing follows that; cut before '{facts[a].name}'"
            misfits[a] = f"cut after '{facts[a].name}': it would have to move past '{past}', {why}, {way_out}"
        elif not facts[a].bundle:
            notes[a] = f"cut after '{facts[a].name}' moved past '{past}', {why}"
    if misfits:
        raise CutError(list(misfits.values()))
    return frozenset(made), list(notes.values())


def _leaving(facts: Facts, units: Units, a: int, b: int) -> set[Pair]:
    """The edges out of the unit of `a` and `b` by which what follows the edge from `a` to `b` leaves."""
    inside = units.members[units.of[a]]
    after = {b} | {p for p in inside if facts[p].holds & facts[a].holds}
    for p in inside:  # in graph order
        if p > b and after.intersection(facts[p].inputs):
            after.add(p)
    return {(p, user) for p in after for user in facts[p].users if units.of[user] != units.of[p]}


def _obstacle(facts: Facts, known: Memory, units: Units, a: int) -> tuple[str, str]:
    """What a cut after `a` has to move past, and why."""
    writer = last_writer(facts, known, a)
    if writer is not None:
        return facts[writer].name, "which changes its value in place"
    return facts[units.members[units.of[a]][-1]].name, "which must run in one piece with it"
