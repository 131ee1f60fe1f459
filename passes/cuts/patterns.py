r"""Patterns of names: globs and regular expressions, matched in bounded time.

Python's own matcher tries one way after the other, and there may be more of them than a lifetime has seconds: `(.*)*!`.
This one follows all ways at once: it asks of each piece of a pattern at which places of the text it may end.

    (a|b)*c  on "abac"     {0} ─(a|b)*─► {0, 1, 2, 3} ─c─► {4}     the end of the text is among them: it matches
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

_parser: Any = re._parser  # type: ignore[attr-defined]  # Python's own parser, so that the language is Python's
_compiler: Any = re._compiler  # type: ignore[attr-defined]  # the same
_LENGTH = 2_000  # letters
_GROUPS = 100  # Python's parser and this matcher call themselves for each group within another
_STEPS = 200_000  # for one name

Match = Callable[[str], bool]


class PatternError(ValueError):
    """A text is no pattern, or one that is not taken here."""


def pattern(text: str) -> Match:
    """What tells whether a whole name matches "re:..." or a glob.

    Raises:
        PatternError: this is no pattern, or it needs more than bounded time. The test of a name may raise it too.
    """
    if len(text) > _LENGTH:
        raise PatternError(f"has {len(text)} letters; patterns of up to {_LENGTH} are taken")
    source = text.removeprefix("re:") if text.startswith("re:") else _as_regex(text)
    kind = "regular expression" if text.startswith("re:") else "glob"
    if source.count("(") > _GROUPS:
        raise PatternError(f"is no {kind}: it has more than {_GROUPS} groups")
    try:
        tree = _parser.parse(source)
        _refuse(tree)
        re.compile(source)
    except (re.error, OverflowError, Warning) as error:
        raise PatternError(f"is no {kind}: {error}") from error
    return lambda name: _Matcher(tree, name).matches()


def _as_regex(glob: str) -> str:
    """`*` and `?` stay inside one name of a path, `**` crosses the dots."""
    parts = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    pieces = re.split(r"(\*\*+|\*|\?|\[[^\]]*\])", glob)
    return "(?s:" + "".join(_glob_piece(piece, parts) for piece in pieces) + ")"


def _glob_piece(piece: str, parts: dict[str, str]) -> str:
    if piece.startswith("[") and piece.endswith("]"):
        return piece.replace("[!", "[^", 1).replace("\\", "\\\\")
    return parts["**"] if piece.startswith("**") else parts.get(piece, re.escape(piece))


def _refuse(tree: Any) -> None:
    """Raise for what depends on the way that a match was found."""
    for op, argument in tree:
        if str(op) in ("GROUPREF", "GROUPREF_EXISTS", "ATOMIC_GROUP", "POSSESSIVE_REPEAT"):
            raise PatternError(f"uses {str(op).lower()}, which patterns of names do not take")
        for inner in _inner(argument):
            _refuse(inner)


def _inner(argument: Any) -> Iterable[Any]:
    """The patterns inside of what an operation of a pattern is given."""
    if isinstance(argument, _parser.SubPattern):
        yield argument
    elif isinstance(argument, tuple | list):
        for value in argument:
            yield from _inner(value)


class _Matcher:
    """One pattern on one name."""

    def __init__(self, tree: Any, name: str):
        self.tree, self.name, self.steps = tree, name, 0
        self._flags = tree.state.flags
        self._leaves: dict[int, Any] = {}

    def matches(self) -> bool:
        return len(self.name) in self._sequence(self.tree, {0}, self._flags)

    def _sequence(self, items: Any, places: set[int], flags: int) -> set[int]:
        """Where a sequence may end that begins at one of these places."""
        for item in items:
            if not places:
                break
            places = self._item(items, item, places, flags)
        return places

    def _item(self, items: Any, item: Any, places: set[int], flags: int) -> set[int]:
        op, argument = str(item[0]), item[1]
        self.steps += len(places)
        if self.steps > _STEPS:
            raise PatternError(f"takes more than {_STEPS} steps on a name of {len(self.name)} letters")
        if op == "BRANCH":
            return set().union(*(self._sequence(way, places, flags) for way in argument[1]))
        if op == "SUBPATTERN":
            return self._sequence(argument[3], places, (flags | argument[1]) & ~argument[2])
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inside = argument
            return self._repeat(least, most, inside, places, flags)
        if op in ("ASSERT", "ASSERT_NOT"):
            direction, inside = argument
            found = {place for place in places if self._looks(inside, place, direction, flags)}
            return found if op == "ASSERT" else places - found
        leaf = self._leaves.get(id(item))
        if leaf is None:  # a letter, a set of letters, or a place in the text: by Python's own matcher
            leaf = self._leaves[id(item)] = _compiler.compile(_parser.SubPattern(_state(items, flags), [item]), flags)
        return {match.end() for place in places if (match := leaf.match(self.name, place)) is not None}

    def _repeat(self, least: int, most: int, inside: Any, places: set[int], flags: int) -> set[int]:
        ends, count = set(places) if least == 0 else set(), 0
        while places and count < most:
            found = self._sequence(inside, places, flags)
            count += 1
            if count >= least:
                found = found - ends
                ends |= found
            elif found == places:  # what it may do without letters it may do as often as is asked for
                count = least - 1
            places = found
        return ends

    def _looks(self, inside: Any, place: int, direction: int, flags: int) -> bool:
        if direction > 0:
            return bool(self._sequence(inside, {place}, flags))
        return any(place in self._sequence(inside, {start}, flags) for start in range(place + 1))


def _state(items: Any, flags: int) -> Any:
    """A state of the parser for one piece of a pattern."""
    state = _parser.State()
    state.flags, state.str = flags, ""
    return state
