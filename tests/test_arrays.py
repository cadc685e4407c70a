"""The door for arrays: what comes in as which kind, what goes out, and what is refused."""

import inspect

import numpy as np
import pytest
import torch

from specfit.arrays import as_float64, same_kind
from specfit.errors import InputError


@same_kind
def difference(left: torch.Tensor, right: torch.Tensor, *, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Subtracts."""
    return (left - right) * (1 if scale is None else scale)


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], dtype=np.int32),
        np.array([[1, 2], [3, 4]], dtype=np.uint8),
        np.array([[1, 2], [3, 4]], dtype=">f4"),
        np.array([[1, 3], [2, 4]], dtype=np.longdouble).T,
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.float16),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_numbers_of_any_kind_become_float64_of_the_same_shape(value):
    tensor = as_float64(value, "counts")
    assert tensor.dtype == torch.float64
    assert tensor.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_scalars_and_bools_are_numbers():
    assert as_float64(3, "x").shape == ()
    assert as_float64([True, False], "mask").tolist() == [1.0, 0.0]


def test_a_later_change_of_the_users_array_does_not_reach_the_tensor():
    array = np.ones(3)
    tensor = as_float64(array, "counts")
    array[:] = 7
    assert tensor.tolist() == [1.0, 1.0, 1.0]


def test_a_tensor_keeps_its_gradient():
    leaf = torch.ones(2, dtype=torch.float32, requires_grad=True)
    as_float64(leaf, "counts").sum().backward()
    assert leaf.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b"], r"counts: real numbers are expected, an array of <U1 came; convert it to float first"),
        ([None, 1.0], r"counts: real numbers are expected, an array of object came"),
        (np.array([1 + 2j]), r"counts: real numbers are expected, an array of complex128 came"),
        (np.array(["2012-07-04"], dtype="datetime64[D]"), r"counts: real numbers are expected, an array of datetime64"),
        (torch.tensor([1 + 2j]), r"counts: complex numbers came, real numbers are expected"),
        ([[1, 2], [3]], r"counts: not a rectangular array of numbers"),
        (None, r"counts: real numbers are expected, an array of object came"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused_by_name(value, message):
    with pytest.raises(InputError, match=message):
        as_float64(value, "counts")


def test_an_input_error_is_a_value_error():
    with pytest.raises(ValueError, match="counts"):
        as_float64("text", "counts")


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (3.0, 1, float),
        (np.float32(3), np.array(1.0), float),
        ([3.0], 1.0, np.ndarray),
        (3, np.ones(2), np.ndarray),
        ((3, 3), [[1], [1]], np.ndarray),
        (torch.tensor(3.0), 1.0, torch.Tensor),
        (np.full(2, 3.0), torch.ones(2), torch.Tensor),
    ],
)
def test_the_answer_comes_back_in_the_kind_of_the_arguments(left, right, kind):
    answer = difference(left, right)
    assert type(answer) is kind
    assert np.shape(answer) == np.broadcast_shapes(np.shape(left), np.shape(right))
    np.testing.assert_array_equal(np.asarray(answer), 2.0)


def test_a_tensor_given_by_keyword_decides_the_kind_too():
    scale = torch.tensor(2.0, requires_grad=True)
    answer = difference([3.0, 5.0], 1.0, scale=scale)
    answer.sum().backward()
    assert answer.dtype == torch.float64
    assert scale.grad.item() == 6.0


def test_none_passes_only_where_it_is_the_default():
    assert difference(3.0, 1.0, scale=None) == 2.0
    with pytest.raises(InputError, match="right: real numbers are expected"):
        difference(3.0, None)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((3, 1, 2), {}), ((3,), {}), ((3, 1), {"left": 2}), ((3, 1), {"weight": 2})]
)
def test_the_signature_of_the_formula_is_kept(args, kwargs):
    with pytest.raises(TypeError):
        difference(*args, **kwargs)


def test_name_docstring_and_signature_are_those_of_the_formula():
    assert (difference.__name__, difference.__doc__) == ("difference", "Subtracts.")
    assert list(inspect.signature(difference).parameters) == ["left", "right", "scale"]


def test_shapes_that_do_not_broadcast_are_refused_with_all_shapes():
    with pytest.raises(InputError, match=r"left \(2,\), right \(3,\): these shapes do not broadcast"):
        difference([1.0, 2.0], [1.0, 2.0, 3.0])
