"""Patterns of names match what Python's own match, in bounded time."""

import re
import time

import pytest

from dnigraph.passes.cuts.patterns import PatternError, pattern

NAMES = ["layers.0.attn", "layers.10.mlp", "encoder.block.3", "a", "", "x_y", "A.b", "layer\n1", "aab", "\u00e9t\u00e9"]
EXPRESSIONS = [
    r".*", r"layers\.\d+\..*", r"(a|b)*", r"[^.]+", r"(?i)a\.B", r"\w+", r"(layers|encoder)\..*\d+.*", r".{3,5}",
    r"a{2}b?", r"(?=lay).*mlp", r"(?!lay).*", r".*(?<=mlp)", r".*(?<!mlp)", r"^a$", r"\Aa\Z", r"(?:x_?y)?", r"(a?){50}",
    r"(?s).*",
    r"\blayers\b.*", r"(?i:A)\.b", r"[a-z]+\.[0-9]+\.(?:attn|mlp)", r".*?\d", r"()*a", r"(a*)*b?", r"(?x) a  # c",
    r"layers.(0|10).(?P<n>.*)", r"[\w.]+", r"\S+", r"(?a)\w+", r"(|a)+", r"((a|ab)(b|))*", r"",
]  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_language_is_that_of_python(expression):
    matches = pattern(f"re:{expression}")

    assert [matches(name) for name in NAMES] == [re.fullmatch(expression, name) is not None for name in NAMES]


@pytest.mark.parametrize(
    ("glob", "matched"),
    [
        ("layers.*", []),
        ("layers.**", ["layers.0.attn", "layers.10.mlp"]),
        ("*.?.*", ["layers.0.attn"]),
        ("[ax]*", ["a", "x_y", "aab"]),
        ("[!ax]", []),
        ("**", NAMES),
        ("*" * 40, NAMES),
    ],
)
def test_globs_stay_inside_one_name_of_a_path_unless_they_are_doubled(glob, matched):
    matches = pattern(glob)

    assert [name for name in NAMES if matches(name)] == matched


@pytest.mark.parametrize(
    "text",
    [r"re:(\w+\.?)+X", "re:(.*)*(.*)*(.*)*!", "*a" * 40 + "!", "re:(a+)+$b", "re:" + "(a?)" * 60 + "a" * 60 + "!",
     "re:((((a*)*)*)*)*!", "re:((((a{0,90}){0,90}){0,90}){0,90}){0,90}X", "re:(a|a)*(b|b)*!", "re:(?=(a+)+b)a*"],
)  # fmt: skip
def test_patterns_that_try_too_many_ways_are_matched_at_once(text):
    matches = pattern(text)

    started = time.process_time()
    assert not any(map(matches, [*NAMES, "a" * 60, "layers." * 12]))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is no glob: unterminated character set"),
        ("[z-a]", "is no glob: bad character range z-a"),
        ("re:[", "is no regular expression: unterminated"),
        ("re:" + "(" * 900 + ")" * 900, "is no regular expression: it has more than 100 groups"),
        ("re:" + "(" * 5000, "has 5003 letters"),
        ("re:a{99999999999}", "is no regular expression: the repetition number is too large"),
        (r"re:(.)\1", "uses groupref"),
        ("re:(?>a)", "uses atomic_group"),
    ],
)
def test_what_is_no_pattern_says_so(text, words):
    with pytest.raises(PatternError, match=re.escape(words)):
        pattern(text)


def test_a_name_that_takes_too_long_is_refused():
    with pytest.raises(PatternError, match="takes more than 200000 steps on a name of 90000 letters"):
        pattern("re:(a*b?)*(a*c?)*!")("a" * 90_000)
