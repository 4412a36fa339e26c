"""Keyed randomness: a pure function of its key that leaves no trace in the global generators."""

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisebox.randomness import KeyedRows, isolated, normal, numpy_generator, seed_of, torch_generator, uniform

keys = st.tuples(
    st.integers(0, 2**31), st.text(max_size=8), st.lists(st.integers(0, 2**40) | st.text(max_size=4), max_size=3)
)


@given(keys, keys)
def test_seed_is_a_function_of_the_key_alone(first: tuple, second: tuple) -> None:
    same = (first[0], first[1], *first[2]) == (second[0], second[1], *second[2])
    assert (seed_of(first[0], first[1], *first[2]) == seed_of(second[0], second[1], *second[2])) == same


def test_number_types_make_no_difference() -> None:
    assert seed_of(np.int64(3), "noise", np.int32(7)) == seed_of(3, "noise", 7)
    assert seed_of(1, "a", 23) != seed_of(1, "a", 2, 3) != seed_of(1, "a", "23")


def test_known_values_hold_across_versions() -> None:
    """The keys are part of every published result: a change here changes all of them."""
    assert seed_of(0, "weights") == 5087778715007104936
    assert numpy_generator(0, "x", 1).integers(0, 1000, 3).tolist() == [298, 444, 406]


def test_draws_are_standard_normal() -> None:
    drawn = torch.cat([normal((500,), 0, "moments", index) for index in range(40)])
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.02


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    drawn = torch.cat([uniform((500,), 0, "moments", index) for index in range(40)])
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() < 1
    shares = torch.histc(drawn, 10, 0, 1) / len(drawn)
    assert (shares - 0.1).abs().max() < 4 * (0.09 / len(drawn)) ** 0.5


@given(rows=st.lists(st.tuples(st.integers(0, 99), st.tuples(st.integers(0, 99), st.integers(0, 99))), min_size=1))
def test_each_row_draws_by_its_own_key_whatever_rows_are_beside_it(rows: list) -> None:
    noise = KeyedRows(rows, "cpu")
    for shape in ((), (3,), (2, 4)):
        gaussian, flat = noise.normal("a", shape), noise.uniform("a", shape)
        assert gaussian.shape == flat.shape == (len(rows), *shape)
        for row, (seed, index) in enumerate(rows):
            assert torch.equal(gaussian[row], normal(shape, seed, "a", *index))
            assert torch.equal(flat[row], uniform(shape, seed, "a", *index))


def test_global_generators_are_left_alone() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    normal((3,), 0, "a")
    KeyedRows([(0, (1, 2))], "cpu").uniform("a", (3,))
    torch.rand(3, generator=torch_generator(0, "b"))
    with isolated(5, "weights"):
        first = (random.random(), np.random.rand(), torch.rand(1))
    with isolated(5, "weights"):
        assert first == (random.random(), np.random.rand(), torch.rand(1))
    assert before[0] == random.getstate()
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state())
