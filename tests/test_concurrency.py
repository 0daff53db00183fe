"""Threads and processes at once through one model give the bytes and pixels that they give one after the other."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from multiprocessing import get_context

import numpy as np

from tests.support import GOLDEN, noise
from vqcodec import codec, image
from vqcodec.model import Model

SIZES = [(40 + 13 * number, 150 - 9 * number, (1, 2, 3, 4)[number % 4]) for number in range(12)]


def work(number: int, model: Model | None = None) -> tuple[str, str]:
    """Compresses and decompresses one picture, by way of a PNG; returns the digests of both."""
    opened = model or codec.load_model(GOLDEN / "model")
    height, width, bands = SIZES[number]
    picture = np.dstack([noise(height, width, number), noise(height, width, number + 99)])[:, :, :bands]
    picture = image.read_picture(image.write(picture[:, :, 0] if bands == 1 else picture)).pixels
    data = codec.compress(picture, 7 * number, opened)
    restored = codec.decompress(data, opened)
    return sha256(data).hexdigest(), sha256(restored.tobytes()).hexdigest()


def test_eight_threads_share_one_model(model: Model) -> None:
    serial = [work(number, model) for number in range(len(SIZES))]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            order = list(range(len(SIZES))) * 2
            assert list(pool.map(work, order, [model] * len(order))) == serial * 2


def test_threads_open_a_model_at_the_same_time() -> None:
    """A model that nobody has used yet."""
    serial = [work(number) for number in range(4)]
    opened = codec.load_model(GOLDEN / "model")
    fresh = Model(opened.name, opened.config, opened.card, opened.files)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, [0, 1, 2, 3] * 2, [fresh] * 8)) == serial * 2


def test_four_processes() -> None:
    serial = [work(number) for number in range(len(SIZES))]
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        assert list(pool.map(work, range(len(SIZES)))) == serial
