"""The BLAS has one thread while the codec computes, and what it had before and after, whoever else is inside."""

from __future__ import annotations

from threading import Barrier, Thread

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from tests.support import GOLDENS, make_config, random_codes, random_prior
from vqcodec import bitstream
from vqcodec.blas import one_blas_thread
from vqcodec.layers import Array, blas_product
from vqcodec.model import load_model
from vqcodec.prior import Prior

CONTROLLER = ThreadpoolController()
pytestmark = pytest.mark.skipif(not CONTROLLER.select(user_api="blas").lib_controllers, reason="numpy's BLAS is not one that can be told")


def threads() -> set[int]:
    return {library["num_threads"] for library in CONTROLLER.select(user_api="blas").info()}


@pytest.fixture(autouse=True)
def two_threads():  # type: ignore[no-untyped-def]
    """What a process has that never heard of us."""
    usual = CONTROLLER.limit(limits=2, user_api="blas")
    if threads() != {2}:
        pytest.skip("this BLAS has no second thread")
    yield
    usual.restore_original_limits()


def test_the_last_to_leave_gives_the_threads_back() -> None:
    inside, leave = Barrier(2), Barrier(2)

    def other() -> None:
        with one_blas_thread():
            inside.wait()
            leave.wait()

    with one_blas_thread():
        assert threads() == {1}
        thread = Thread(target=other)
        thread.start()
        inside.wait()
    assert threads() == {1}  # the other one is still inside
    leave.wait()
    thread.join()
    assert threads() == {2}


def test_an_error_gives_them_back_too() -> None:
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError
    assert threads() == {2}


def test_products_of_the_prior_have_one_thread() -> None:
    seen: list[set[int]] = []

    def product(inputs: Array, weight: Array) -> Array:
        seen.append(threads())
        return blas_product(inputs, weight)

    rng, config = np.random.default_rng(0), make_config(4, (1, 1, 1), (4, 4, 4), 1)
    prior = Prior(Prior.from_tensors(random_prior(rng, config), config).levels, product)
    codes = random_codes(rng, config, 40, 40)
    bitstream.read(prior, bitstream.write(prior, codes, 40, 40, 5000), 40, 40, 5000)
    assert seen
    assert all(found == {1} for found in seen)
    assert threads() == {2}


def test_the_search_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(GOLDENS[-1] / "model")
    searches = model.transform.searches()  # type: ignore[misc]
    for search in searches:
        monkeypatch.setitem(search.__dict__, "compiled", None)  # that has no BLAS
    seen: list[set[int]] = []
    some = type(searches[0])._some
    monkeypatch.setattr(type(searches[0]), "_some", lambda *arguments: seen.append(threads()) or some(*arguments))
    model.encode(np.zeros((32, 32, 3), np.uint8), 50)
    assert seen
    assert all(found == {1} for found in seen)
    assert threads() == {2}
