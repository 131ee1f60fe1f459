"""The plan as text: whole tables, and each unit at its edges."""

import dataclasses
import io

import pytest
from rich.console import Console

from dnigraph.passes.plan.plan import (
    Crossing,
    Part,
    Plan,
    amount,
    amount_of_bytes,
    amount_of_flops,
    crossing_rows,
    part_rows,
    stands,
    value,
)

ONE = Plan("MLP", "symbolic", (), (Part("part_0", 0, ("fc1", "relu", "fc2"), ("x",), ("fc2",), 1234),), (), ("x",))

FOUR = Plan(
    "ResNet",
    "record",
    cuts=(("layer1", "layer2"), ("layer2", "layer3"), ("layer3", "layer4")),
    parts=(
        Part("part_0", 0, ("conv1", "relu", "layer1"), ("x",), ("layer1", "size"), 157_504, 3_800_000_000),
        Part("part_1", 1, ("layer2",), ("layer1",), ("layer2",), 525_568, 950_000_000),
        Part("part_2", 2, ("layer3",), ("layer2", "size"), ("layer3",), 2_099_712, 12_300_000),
        Part("part_3", 3, ("layer4", "pool", "fc"), ("layer3", "layer1", "size"), ("fc",), 0, 640),
    ),
    crossings=(
        Crossing(
            "layer1", "layer1", "part_0", ("part_1", "part_3"), (8, 64, 56, 56), "float32", 6_422_528, True, True,
            "dni", "two 3x3 convolutions", 111_040,
        ),
        Crossing("layer1.size", "size", "part_0", ("part_2", "part_3"), None, "int", 0, False, False),
        Crossing("layer2", "layer2", "part_1", ("part_2",), (8, 128), "float32", 4096, True, True, "oracle"),
        Crossing("layer3", "layer3", "part_2", ("part_3",), (8,), "float32", 32, True, False, "dni", "linear", 72),
    ),
    inputs=("x",),
    notes=("layer1 flows around the cut 'layer2', so it was cut there too", "part_3 holds no parameters"),
)  # fmt: skip

TABLE_OF_ONE = """\
MLP: 1 part, not cut (capture: symbolic)
1.2 k parameters

part    holds           parameters    share  forward  reads  hands on
──────────────────────────────────────────────────────────────────────
part_0  fc1 .. fc2 (3)       1.2 k  100.0 %        -  x      fc2"""

TABLE_OF_FOUR = """\
ResNet: 4 parts, cut at 3 edges (capture: record)
2.8 M parameters, 4.8 GFLOP forward, 111.1 k parameters in heads

part    holds                parameters   share      forward  reads              hands on
──────────────────────────────────────────────────────────────────────────────────────────────
part_0  conv1 .. layer1 (3)     157.5 k   5.7 %    3.8 GFLOP  x                  layer1, size
part_1  layer2                  525.6 k  18.9 %  950.0 MFLOP  layer1             layer2
part_2  layer3                    2.1 M  75.5 %   12.3 MFLOP  layer2, size       layer3
part_3  layer4 .. fc (3)              0   0.0 %     640 FLOP  layer3, layer1 +1  fc

crossing     from → to        value                    size  boundary          head             parameters  of its part
────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
layer1       part_0 →         float32[8,64,56,56]   6.1 MiB  dni               two 3x3             111.0 k       70.5 %
             part_1, part_3                                                    convolutions
layer1.size  part_0 →         int                         -  as it is, goes    -                         -            -
             part_2, part_3                                  around
layer2       part_1 → part_2  float32[8,128]        4.0 KiB  oracle            -                         -            -
layer3       part_2 → part_3  float32[8]           32 bytes  dni, goes around  linear                   72        0.0 %

* layer1 flows around the cut 'layer2', so it was cut there too
* part_3 holds no parameters"""


def test_one_part_has_no_table_of_crossings():
    assert str(ONE) == TABLE_OF_ONE


def test_the_table_of_four_parts_says_what_is_cut_and_what_it_costs():
    assert str(FOUR) == TABLE_OF_FOUR


def test_two_hundred_parts_stay_in_the_width():
    parts = [Part(f"part_{i}", i, (f"blocks_{i}_attention",), ("x",), (f"blocks_{i}_mlp",), 10) for i in range(200)]
    crossings = [Crossing(f"blocks.{i}.mlp", f"blocks_{i}_mlp", f"part_{i}", ("part_199",)) for i in range(199)]
    crossings += [Crossing("x" * 90, "mask", "part_0", tuple(part.name for part in parts[1:]))]

    lines = str(Plan("ViT", "record", (), tuple(parts), tuple(crossings))).splitlines()

    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("part_") for line in lines) == 200
    assert "+196" in " ".join(lines)
    assert not any(line.endswith(" ") for line in lines)


def test_the_terminal_does_not_change_the_text(monkeypatch):
    plain = str(FOUR)

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")

    assert str(FOUR) == plain
    assert "\x1b" not in plain


def test_rich_prints_a_plan_as_its_table():
    file = io.StringIO()

    Console(file=file, width=120, _environ={}).print(FOUR)

    assert [line.rstrip() for line in file.getvalue().splitlines()] == str(FOUR).splitlines()


def test_names_are_shown_as_they_are_and_never_read_as_markup():
    name = '[red]a<"c"[/red] :up:'
    plan = dataclasses.replace(ONE, model=name, parts=(Part(name, 0, (name,), (name,), (), 0),), notes=(name,))

    assert str(plan).count(name) == 5  # model, part, what it holds and reads, note


@pytest.mark.parametrize(
    "number, words",
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (12_345, "12.3 k"), (999_949, "999.9 k"), (999_950, "1.0 M"),
     (7_000_000_000, "7.0 G"), (10**19, "10000.0 P")],
)  # fmt: skip
def test_an_amount_has_the_unit_that_fits(number, words):
    assert amount(number) == words


@pytest.mark.parametrize(
    "flops, words", [(None, "-"), (0, "0 FLOP"), (640, "640 FLOP"), (12_300_000, "12.3 MFLOP"), (10**15, "1.0 PFLOP")]
)
def test_flops_are_counted_in_thousands(flops, words):
    assert amount_of_flops(flops) == words


@pytest.mark.parametrize(
    "size, words", [(0, "0 bytes"), (40, "40 bytes"), (1536, "1.5 KiB"), (1024**2 - 1, "1.0 MiB"), (3 << 30, "3.0 GiB")]
)
def test_bytes_are_counted_in_1024s(size, words):
    assert amount_of_bytes(Crossing("a", "a", "p", (), (1,), bytes=size)) == words


def test_what_nobody_measured_is_a_dash():
    crossing = Crossing("a", "a", "p", ("q",), gradient=True)
    plan = Plan("M", "record", (), (Part("p", 0, (), (), (), 0), Part("q", 1, (), (), (), 0)), (crossing,))

    assert next(part_rows(plan)) == ("p", "-", "0", "-", "-", "-", "-")
    assert next(crossing_rows(plan)) == ("a", "p → q", "-", "-", "-", "-", "-", "-")


@pytest.mark.parametrize(
    "gradient, asked, boundary, words",
    [
        (True, True, "dni", "dni"),
        (True, False, "dni", "dni, goes around"),
        (False, True, None, "as it is"),
        (False, False, None, "as it is, goes around"),
        (True, False, None, "goes around"),
    ],
)
def test_what_stands_on_a_crossing_is_said_in_words(gradient, asked, boundary, words):
    crossing = Crossing("a", "a", "p", ("q",), gradient=gradient, asked=asked, boundary=boundary)

    assert stands(crossing) == words


def test_a_scalar_says_so():
    assert value(Crossing("a", "a", "p", (), (), "float32")) == "float32[]"
