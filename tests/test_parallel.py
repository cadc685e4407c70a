"""on_all_cores: order, one thread a piece, settings restored, errors passed on."""

import pytest
import torch

from specfit.parallel import on_all_cores


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_pieces_come_back_in_order_from_single_threads_without_gradients(threads):
    def compute(i):
        return i, torch.get_num_threads(), torch.is_grad_enabled()

    assert on_all_cores(compute, range(7)) == [(i, 1, False) for i in range(7)]
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_the_answer_does_not_depend_on_the_threads(threads):
    pieces = torch.randn(6, 200, 300, generator=torch.Generator().manual_seed(1)).unbind()
    answers = on_all_cores(lambda a: a @ a.mT, pieces)
    torch.set_num_threads(1)
    assert all(torch.equal(answer, a @ a.mT) for answer, a in zip(answers, pieces, strict=True))


def test_an_error_is_passed_on_and_the_threads_are_restored(threads):
    with pytest.raises(ZeroDivisionError):
        on_all_cores(lambda i: 1 / i, [1, 0, 2])
    assert torch.get_num_threads() == threads
