import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mom_jax.data.held_out import TooFewItems, held_out_below, stable_hash

NAMES = st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=40, unique=True)
FRACTIONS = st.floats(0.01, 0.99)


def _held_out(names, fraction):
    bound = held_out_below(map(stable_hash, names), fraction)
    return {name for name in names if stable_hash(name) < bound}


@given(NAMES, FRACTIONS)
def test_neither_side_is_empty_and_order_is_nothing(names, fraction):
    held_out = _held_out(names, fraction)
    assert 0 < len(held_out) < len(names)
    assert held_out == _held_out(names[::-1], fraction)


@given(NAMES, NAMES, FRACTIONS)
def test_more_files_move_none_that_were_there(names, more, fraction):
    bound = int(fraction * 2**64)
    assume(any(stable_hash(n) < bound for n in names) and any(stable_hash(n) >= bound for n in names))
    everything = list(dict.fromkeys(names + more))
    assert _held_out(everything, fraction) & set(names) == _held_out(names, fraction)


def test_the_share_is_near_the_fraction():
    names = [f"file-{i}" for i in range(20_000)]
    assert abs(len(_held_out(names, 0.05)) / len(names) - 0.05) < 0.005


def test_the_hash_never_changes():
    # A new value here would move files between the splits of everyone's data.
    assert stable_hash("os.py") == 0xF19DB6A54FEDE009


@pytest.mark.parametrize("hashes", [[], [5], [5, 5, 5]])
def test_one_item_cannot_be_split(hashes):
    with pytest.raises(TooFewItems):
        held_out_below(hashes, 0.5)
