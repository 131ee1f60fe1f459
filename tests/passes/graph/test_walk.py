"""The walk over what objects hold: what it finds, in which order, and how deep it goes."""

from dnigraph.passes.graph.walk import filled_slots, slots_of, walk


def opened(value):
    return value if isinstance(value, dict | list) else None


def found(root, depth, **options):
    return [
        (key, value) for _, key, value in walk(root, opened, depth, **options) if not isinstance(value, list | dict)
    ]


class Leaf:
    pass


A, B, C = Leaf(), Leaf(), Leaf()


def test_values_come_in_order_with_the_key_they_have_and_the_table_that_holds_them():
    inner = {"b": B}
    root = [A, inner, C]

    places = list(walk(root, opened, 2))

    assert [key for _, key, _ in places] == [None, 0, 1, "b", 2]
    assert places[0][0] is None and places[1][0] is root and places[3][0] is inner
    assert [value for _, _, value in places] == [root, A, inner, B, C]


def test_as_many_tables_are_opened_as_is_said():
    assert found([A, [B, [C]]], 0) == []
    assert found([A, [B, [C]]], 1) == [(0, A)]
    assert found([A, [B, [C]]], 2) == [(0, A), (0, B)]
    assert found([A, [B, [C]]], 3) == [(0, A), (0, B), (0, C)]


def test_numbers_and_text_are_passed_by():
    assert found([1, "a", None, A, 2.0, True, b""], 1) == [(3, A)]


def test_a_value_that_is_found_twice_is_opened_once_but_where_it_can_be_looked_into_deeper():
    shared = [A, [B]]

    assert found([shared, shared], 3) == [(0, A), (0, B)]
    assert found([[shared], shared], 3) == [(0, A), (0, A), (0, B)]


def test_objects_of_a_class_are_looked_into_to_the_full_depth_wherever_they_are():
    class Module(dict):
        pass

    chain = Module(a=Module(b=Module(c=[A, [B]])))

    assert found(chain, 1) == []
    assert found(chain, 1, anew=Module) == [(0, A)]
    assert found(chain, 2, anew=Module) == [(0, A), (0, B)]


def test_a_later_walk_visits_nothing_that_an_earlier_one_opened_as_deep():
    shared, seen = [A, [B]], {}

    assert found([shared], 2, opened=seen) == [(0, A)]
    assert found([shared, C], 2, opened=seen) == [(1, C)]
    assert found([shared], 3, opened=seen) == [(0, A), (0, B)]


def test_what_holds_itself_ends():
    ring = [A]
    ring.append(ring)

    assert found(ring, 9) == [(0, A)]


def test_a_value_that_stays_closed_is_found_at_each_place_that_holds_it():
    assert found([A, {"a": A}, A], 2) == [(0, A), ("a", A), (2, A)]


class Base:
    __slots__ = ("__gain", "left")


class Above(Base):
    __slots__ = "right"


def test_slots_of_all_classes_are_found_by_the_names_that_objects_have_them_under():
    value = Above()
    value.right = 1
    value._Base__gain = 2

    assert set(slots_of(Above)) == {"_Base__gain", "left", "right"}
    assert filled_slots(value) == {"_Base__gain": 2, "right": 1}
    assert slots_of(int) == {} and filled_slots(3) == {}
