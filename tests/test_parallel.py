"""on_all_cores: order, one thread a piece, settings restored, errors passed on, several callers at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from specfit.parallel import on_all_cores, one_thread


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


@pytest.mark.parametrize("first_out", ["the first caller", "the second caller"])
@pytest.mark.parametrize("n_pieces", [1, 2])
def test_two_callers_at_once_leave_as_many_threads_as_there_were(threads, first_out, n_pieces):
    inside, go_on = (dict(zip("ab", (threading.Event(), threading.Event()), strict=True)) for _ in range(2))

    def call(name):
        def compute(_):
            inside[name].set()
            assert go_on[name].wait(60)
            return torch.get_num_threads()

        return on_all_cores(compute, range(n_pieces)), torch.get_num_threads()

    order = "ab" if first_out == "the first caller" else "ba"
    with ThreadPoolExecutor(2) as pool:
        calls = {}
        for name in "ab":
            calls[name] = pool.submit(call, name)
            assert inside[name].wait(60)
        for name in order:
            go_on[name].set()
            assert calls[name].result(60) == ([1] * n_pieces, threads)
    with ThreadPoolExecutor(1) as pool:  # a thread that torch has not seen
        assert pool.submit(torch.get_num_threads).result() == threads
    assert torch.get_num_threads() == threads


def test_what_asks_for_all_cores_inside_of_a_piece_gets_one(threads):
    def inner(_):
        return threading.get_ident(), torch.get_num_threads()

    def compute(_):
        return on_all_cores(inner, range(3)), (threading.get_ident(), torch.get_num_threads())

    for answers, own in on_all_cores(compute, range(4)):
        assert answers == [own] * 3
        assert own[1] == 1
    with one_thread():
        assert on_all_cores(inner, range(3)) == [(threading.get_ident(), 1)] * 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
