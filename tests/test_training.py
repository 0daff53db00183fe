"""Training: the torch twin against the runtime, exact resume, and a real (tiny) training through the command line."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support import IMAGES, ROOT, Array, hollow_png, load_image, noise, random_codes, vqcodec
from vqcodec import codec, sessions
from vqcodec.config import LevelConfig
from vqcodec.errors import ModelError, TrainingError
from vqcodec.model import CARD, DECODE, IMPROVERS, WEIGHTS, load_model, open_transform
from vqcodec.prior import Prior
from vqcodec.scan import IMPOSSIBLE, scan, symbols_of

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")

from PIL import Image as Pillow  # noqa: E402
from safetensors.numpy import load_file as load_numpy  # noqa: E402
from safetensors.torch import load_file, save  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tests import gradients  # noqa: E402
from vqcodec.training import pixelcnn  # noqa: E402
from vqcodec.training.data import CropSampler, load_images  # noqa: E402
from vqcodec.training.export import ExportedTransform, export_model, export_transform, round_weights  # noqa: E402
from vqcodec.training.improve import wanted_bottom, wanted_middle  # noqa: E402
from vqcodec.training.loop import World, run  # noqa: E402
from vqcodec.training.presets import PRESETS  # noqa: E402
from vqcodec.training.prior import CodedImage, PriorTrainer, WindowSampler, encode_images, evaluate_prior, load_codes, save_codes, varied  # noqa: E402
from vqcodec.training.quantize import LOG2_E, ResidualQuantizer  # noqa: E402
from vqcodec.training.report import Silent  # noqa: E402
from vqcodec.training.schedule import Clock, Schedule  # noqa: E402
from vqcodec.training.start import QUALITY_SCALES, exported_prior, exported_weights  # noqa: E402
from vqcodec.training.train import TrainOptions, load_data, train  # noqa: E402
from vqcodec.training.transform import SPLIT_STEPS, TransformTrainer  # noqa: E402
from vqcodec.training.vqvae import VQVAE, flat  # noqa: E402
from vqcodec.transform import PATHS  # noqa: E402

TINY = PRESETS["tiny"].config
CPU = World(torch.device("cpu"))
FOREVER = 1e9  # minutes: schedules in tests count steps


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with quarters of the sample photographs, one file that is no picture and one that is too small."""
    folder = tmp_path_factory.mktemp("photographs")
    for path in IMAGES.glob("*.png"):
        picture = Pillow.fromarray(load_image(path))
        picture.resize((256, 160)).save(folder / path.name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    Pillow.fromarray(noise(20, 20)).save(folder / "small.png")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[VQVAE, pixelcnn.PixelCNN, Path]:
    """An untrained model that differs between qualities and can be adapted, and its folder."""
    torch.manual_seed(1)
    transform, prior = VQVAE(TINY.transform), pixelcnn.PixelCNN(TINY)
    with torch.no_grad():
        for name, parameter in transform.named_parameters():
            if name.endswith(QUALITY_SCALES):
                parameter.normal_(std=0.2)
            if ".adapt." in name:
                parameter.normal_(std=0.02)
    round_weights(transform)  # as they are exported: other weights find other codes
    folder = tmp_path_factory.mktemp("small")
    export_model(export_transform(transform), prior, folder, "small", {})
    return transform, prior, folder


@pytest.mark.parametrize("quality", [0, 3_771, 10_000])
def test_the_twin_and_the_runtime_give_equal_integers(quality: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(quality)
    twin = pixelcnn.PixelCNN(TINY).eval()
    runtime = Prior(Prior.from_tensors(twin.export(), TINY).levels)
    codes = random_codes(np.random.default_rng(quality), TINY, 150, 90)
    with torch.no_grad():
        expected = twin.symbols([torch.from_numpy(c).long()[None] for c in codes], torch.tensor([quality]))
    monkeypatch.setattr("vqcodec.scan.freqs", lambda logits: logits)
    context: Array | None = None
    for level, code_map in enumerate(codes):
        context = runtime.context(level, quality, codes[level - 1] if level else None, context)
        symbols = symbols_of(code_map)
        found: dict[tuple[int, int, int], list[float]] = {}  # by stage and place

        def keep(stage: int, rows: Array, columns: Array, logits: Array, found: dict = found, known: Array = symbols) -> Array:
            found |= {(stage, *place): row for *place, row in zip(rows.tolist(), columns.tolist(), logits.tolist(), strict=True)}
            return known[stage, rows, columns]

        scan(runtime, level, context, code_map.shape[1:], keep)
        count = 0
        for stage, (here, logits, values) in enumerate(expected[level], start=-1):
            units = logits.numpy() / pixelcnn.NATS
            possible = logits.numpy() != pixelcnn.IMPOSSIBLE
            assert np.abs(units - units.round())[possible].max() < 1e-3
            for place, value, row, held in zip(here.tolist(), values.tolist(), units.round(), possible, strict=True):
                spot = divmod(place, code_map.shape[2])
                assert value == symbols[(stage, *spot)]
                assert np.array_equal(np.array(found[(stage, *spot)])[held], row[held])
                assert found[(stage, *spot)][0] == IMPOSSIBLE or held[0]
                count += 1
        assert count == len(found)


def test_a_prior_starts_from_an_exported_one() -> None:
    torch.manual_seed(1)
    tensors = pixelcnn.PixelCNN(TINY).export()
    other = pixelcnn.PixelCNN(TINY)
    assert other.take(tensors)
    again = other.export()
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)
    assert tensors.keys() == again.keys()
    without = {name: tensor for name, tensor in tensors.items() if ".length." not in name}
    assert other.take(without)  # of a prior without lengths: they start so that nothing else notices them
    assert not other.export()["bottom.length.embed"].any()
    assert np.array_equal(other.export()["bottom.head.1.logits.weight"], tensors["bottom.head.1.logits.weight"])
    *coarser, level = TINY.transform.levels
    longer = pixelcnn.PixelCNN(replace(TINY, transform=replace(TINY.transform, levels=(*coarser, replace(level, stages=4)))))
    assert longer.take(tensors)
    assert np.array_equal(longer.export()["bottom.embed"][:2], tensors["bottom.embed"])
    assert not longer.export()["bottom.embed"][2:].any()
    assert not other.take({})
    assert not other.take({name: tensor for name, tensor in tensors.items() if name != "middle.context.up.weight"})
    assert not other.take(tensors | {"top.embed": tensors["top.embed"].astype(np.int32)})
    deeper = pixelcnn.PixelCNN(replace(TINY, prior=replace(TINY.prior, trunk_blocks=(1, 2, 3), context_blocks=(2, 1))))
    assert deeper.take(tensors)
    codes = [torch.from_numpy(c).long()[None] for c in random_codes(np.random.default_rng(0), TINY, 64, 64)]
    assert other.take(tensors)
    bits = [prior.eval()(codes, torch.tensor([5000])) for prior in (deeper, other)]
    assert all(torch.equal(a, b) for a, b in zip(*bits, strict=True))  # new blocks add nothing yet
    wider = pixelcnn.PixelCNN(replace(TINY, prior=replace(TINY.prior, head_channels=24)))
    assert wider.take(tensors)
    assert wider.export()["bottom.head.0.hidden.weight"][:, 16:].any()  # or it could not learn
    assert all(torch.equal(a, b) for a, b in zip(wider.eval()(codes, torch.tensor([5000])), bits[1], strict=True))
    narrower = pixelcnn.PixelCNN(replace(TINY, prior=replace(TINY.prior, channels=8)))
    before = narrower.export()
    assert not narrower.take(tensors)
    assert all(np.array_equal(before[name], found) for name, found in narrower.export().items())


def test_photographs_that_cannot_be_used_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"none")
    (tmp_path / "large.png").write_bytes(hollow_png(15_000, 15_000))
    for name, side in (("small.png", 9), ("right.png", 20)):
        Pillow.fromarray(noise(side, side)).save(tmp_path / name)
    said: list[str] = []
    assert [tuple(pixels.shape) for pixels in load_images(tmp_path, 10, said.append)] == [(3, 20, 20)]
    assert said[0].startswith("3 files")


def transform_weights(folder: Path, photographs: Path, stops: tuple[int, ...]) -> list[np.ndarray]:
    """Weights after the last of `stops` steps, saved and loaded into a new trainer at each stop before it."""
    sampler = CropSampler(load_images(photographs, 96, lambda _: None), Schedule(40, FOREVER, batch=2, crop=96), CPU)
    checkpoint = folder / "transform.safetensors"
    for number, stop in enumerate(stops):
        trainer = TransformTrainer(TINY.transform, Schedule(40, FOREVER), CPU)
        if number:
            trainer.load(checkpoint)
        while trainer.step < stop:
            progress = trainer.step / 40
            trainer.prepare(sampler, progress)
            trainer.train_step(sampler(trainer.step), progress)
            trainer.step += 1
        trainer.save(checkpoint)
    return [p.detach().numpy() for p in [*trainer.model.parameters(), *trainer.average.parameters()]]


@pytest.mark.parametrize("stops", [(2, 5, 8), (3, 8)])  # step 3 begins with the k-means start
def test_a_resumed_training_equals_an_uninterrupted_one(stops: tuple[int, ...], tmp_path: Path, photographs: Path) -> None:
    straight = transform_weights(tmp_path, photographs, (8,))
    resumed = transform_weights(tmp_path, photographs, stops)
    assert all(np.array_equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "transform.safetensors"
    TransformTrainer(TINY.transform, Schedule(10, FOREVER), CPU).save(checkpoint)
    with pytest.raises(TrainingError, match=r"another preset .* --resume the options that it was started with$"):
        PriorTrainer(TINY, Schedule(10, FOREVER), CPU).load(checkpoint)
    wider = replace(TINY.transform, widths=(12, 16, 16, 24))
    with pytest.raises(TrainingError, match=r"another preset .* --resume the options that it was started with$"):
        TransformTrainer(wider, Schedule(10, FOREVER), CPU).load(checkpoint)
    for damaged in (checkpoint.read_bytes()[:1000], b"", save({"model.x": torch.zeros(1)})):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"cannot be read: .*--resume$"):
            TransformTrainer(TINY.transform, Schedule(10, FOREVER), CPU).load(checkpoint)


def test_checkpoints_and_codes_that_cannot_be_written(tmp_path: Path) -> None:
    trainer = TransformTrainer(TINY.transform, Schedule(10, FOREVER), CPU)
    with pytest.raises(TrainingError, match="check the disk"):
        trainer.save(tmp_path / "none/transform.safetensors")
    with pytest.raises(TrainingError, match="check the disk"):
        save_codes(tmp_path / "none/codes.safetensors", [CodedImage([torch.zeros(1, 1, 1) for _ in range(3)], 0)], 7)


def test_codes_are_split_alike_after_a_resume(tmp_path: Path) -> None:
    trainer = TransformTrainer(TINY.transform, Schedule(1000, FOREVER), CPU)
    trainer.started, trainer.step = True, SPLIT_STEPS - 1
    for quantizer in trainer.model.quantizers:
        quantizer.usage[:, 3], quantizer.usage[:, 5] = 50.0, 0.0
    before = trainer.model.quantizers[2].codebooks.clone()
    trainer.save(tmp_path / "transform.safetensors")
    resumed = TransformTrainer(TINY.transform, Schedule(1000, FOREVER), CPU)
    resumed.load(tmp_path / "transform.safetensors")
    for each in (trainer, resumed):
        each.prepare(lambda step: torch.zeros(()), 0.3)
        assert not torch.equal(before[:, 5], each.model.quantizers[2].codebooks[:, 5])
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True))


class Timed:
    """A training whose steps take a minute and whose saves three, on a clock of its own."""

    world = CPU

    def __init__(self, minutes: float, loss: float, monkeypatch: pytest.MonkeyPatch):
        self.schedule, self.loss = Schedule(10**9, minutes), loss
        self.step, self.minutes, self.now = 0, 0.0, 0
        self.saved: list[tuple[int, float]] = []
        monkeypatch.setattr("vqcodec.training.schedule.time", SimpleNamespace(monotonic=lambda: 60.0 * self.now))

    def prepare(self, draw: Callable[[int], int], progress: float) -> None:
        pass

    def train_step(self, batch: int, progress: float) -> dict[str, torch.Tensor]:
        self.now += 1
        return {"loss": torch.tensor(self.loss)}

    def save(self, path: Path) -> None:
        self.saved.append((self.step, self.minutes))
        self.now += 3


@pytest.mark.parametrize(("minutes", "saved"), [(4, [(4, 4)]), (9, [(6, 6), (6, 9)]), (16, [(6, 6), (12, 15), (12, 18)])])
def test_checkpoints_are_saved_now_and_then_and_at_the_end(
    minutes: float, saved: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is at its end must be at its end after a resume."""
    trainer = Timed(minutes, 1.0, monkeypatch)
    assert list(run(trainer, lambda step: step, Path("none"))) == []
    assert trainer.saved == saved
    assert Clock(trainer.schedule, trainer.saved[-1][1]).progress(trainer.step) == 1


@pytest.mark.parametrize(("minutes", "row_steps", "stop"), [(100, 2, 2), (100, 50, 6), (4, 50, 4)])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_training_that_diverges_ends_before_it_is_saved(
    minutes: float, row_steps: int, stop: int, loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a row of figures, at a checkpoint and at the end."""
    monkeypatch.setattr("vqcodec.training.loop.ROW_STEPS", row_steps)
    trainer = Timed(minutes, loss, monkeypatch)
    with pytest.raises(TrainingError, match="--learning-rate"):
        list(run(trainer, lambda step: step, Path("none")))
    assert (trainer.step, trainer.saved) == (stop, [])


def test_the_prior_learns(photographs: Path) -> None:
    transform = TransformTrainer(TINY.transform, Schedule(10, FOREVER), CPU).average
    coded = list(encode_images(transform, load_images(photographs, 96, lambda _: None), 0, FOREVER, passes=1))
    sampler = WindowSampler(coded, 2, 0, CPU)
    trainer = PriorTrainer(TINY, Schedule(100, FOREVER, learning_rate=5e-3), CPU)
    bits = []
    for trainer.step in range(100):
        bits.append(trainer.train_step(sampler(trainer.step), 0.1)["bpp"].item())
    assert np.mean(bits[-5:]) < 0.8 * np.mean(bits[:5])


def test_a_level_that_got_worse_on_held_out_images_is_taken_from_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    held_out = [
        CodedImage([torch.from_numpy(codes.astype(np.int16)) for codes in random_codes(rng, TINY, 96, 64)], quality)
        for quality in (0, 9000)
    ]
    trainer = PriorTrainer(TINY, Schedule(10, FOREVER), CPU, held_out=held_out)
    trainer.prepare(lambda step: None, 0.0)  # type: ignore[arg-type, return-value]
    before, kept = list(trainer.least), [p.clone() for p in trainer.average.levels[0].parameters()]
    with torch.no_grad():
        for parameter in trainer.average.levels[0].parameters():
            parameter.copy_(parameter + torch.randn_like(parameter))
        moved = trainer.average.levels[2].length_logits.bias
        moved += 1e-3
    trainer.save(tmp_path / "prior.safetensors")
    resumed = PriorTrainer(TINY, Schedule(10, FOREVER), CPU, held_out=held_out)
    resumed.load(tmp_path / "prior.safetensors")
    for each in (trainer, resumed):
        assert each.finish() == evaluate_prior(each.average, held_out)
        assert all(torch.equal(a, b) for a, b in zip(kept, each.average.levels[0].parameters(), strict=True))
        assert all(now <= then for now, then in zip(each.least, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(trainer.average.parameters(), resumed.average.parameters(), strict=True))


def test_weights_that_are_no_numbers_are_not_taken() -> None:
    rng = np.random.default_rng(4)
    held_out = [CodedImage([torch.from_numpy(codes.astype(np.int16)) for codes in random_codes(rng, TINY, 96, 64)], 5000)]
    trainer = PriorTrainer(TINY, Schedule(10, FOREVER), CPU, held_out=held_out)
    before = trainer.watch()
    with torch.no_grad():
        for parameter in trainer.average.parameters():
            parameter.fill_(torch.nan)
    assert trainer.finish() == before
    assert all(parameter.isfinite().all() for parameter in trainer.average.parameters())


def test_halfway_between_two_priors_is_taken_where_it_is_the_best() -> None:
    rng = np.random.default_rng(5)
    held_out = [CodedImage([torch.from_numpy(codes.astype(np.int16)) for codes in random_codes(rng, TINY, 96, 64)], 5000)]
    anew = PriorTrainer(TINY, Schedule(10, FOREVER), CPU)
    assert anew.began is None
    trainer = PriorTrainer(TINY, Schedule(10, FOREVER), CPU, anew.average.export(), held_out)
    assert trainer.began is not None
    biases = [trainer.began.levels[2].length_logits.bias, trainer.average.levels[2].length_logits.bias]
    with torch.no_grad():  # opposite mistakes: too many and too few short positions
        for bias, mistake in zip(biases, (0.2, -0.2), strict=True):
            bias[0] += mistake
    ends = [evaluate_prior(prior, held_out)[2][-1] for prior in (trainer.began, trainer.average)]
    halfway = [(began + end) / 2 for began, end in zip(trainer.began.parameters(), trainer.average.parameters(), strict=True)]
    found = trainer.finish()
    assert found[2][-1] < min(ends)
    assert found == evaluate_prior(trainer.average, held_out)
    assert all(torch.allclose(a, b) for a, b in zip(halfway, trainer.average.parameters(), strict=True))


def test_codes_are_kept_for_a_resume(photographs: Path, tmp_path: Path) -> None:
    transform = TransformTrainer(TINY.transform, Schedule(10, FOREVER), CPU).average
    coded = list(encode_images(transform, load_images(photographs, 96, lambda _: None), 0, FOREVER, passes=1))
    save_codes(tmp_path / "codes.safetensors", coded, 7)
    kept = load_codes(tmp_path / "codes.safetensors", 7)
    assert [image.quality for image in kept] == [image.quality for image in coded]
    assert all(torch.equal(a, b) for x, y in zip(kept, coded, strict=True) for a, b in zip(x.codes, y.codes, strict=True))
    assert load_codes(tmp_path / "codes.safetensors", 8) == load_codes(tmp_path / "other.safetensors", 7) == []
    whole = (tmp_path / "codes.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", save({"0.0": kept[0].codes[0]}), whole.replace(b'"0.1"', b'"9.1"')):
        (tmp_path / "codes.safetensors").write_bytes(damaged)
        assert load_codes(tmp_path / "codes.safetensors", 7) == []


BLOCKS = """
import ctypes, os
from vqcodec.training.memory import large_blocks_apart

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Counts, ctypes.c_void_p, [ctypes.c_void_p]

def apart():
    before = libc.mallinfo2().hblks
    block = libc.malloc(3 << 20)
    print(libc.mallinfo2().hblks - before)
    libc.free(block)

apart()  # glibc raises its threshold to what is freed
with large_blocks_apart():
    apart()
apart()
os.environ["MALLOC_MMAP_THRESHOLD_"] = "33554432"
with large_blocks_apart():
    apart()
"""


def test_large_blocks_lie_apart_while_photographs_are_coded() -> None:
    """As glibc counts them, in a process of its own: in this one other tests may have left room for them."""
    if platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc from 2.33 on counts blocks")
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_MMAP_THRESHOLD_"}
    result = subprocess.run([sys.executable, "-c", BLOCKS], check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.split()[1:] == ["1", "0", "0"]


@pytest.mark.parametrize(("height", "width"), [(100, 700), (384, 390), (480, 900), (97, 96)])
def test_the_prior_sees_other_pieces_of_a_photograph_every_time(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width]
    image = torch.from_numpy(np.stack([rows // 8, columns // 8, rows * 0]).astype(np.uint8))
    random = np.random.default_rng(0)
    pieces = [varied(image, random) for _ in range(40)]
    for piece in pieces:
        assert piece.dtype == torch.uint8
        assert min(height, 384) <= piece.shape[1] <= min(height, 512)
        assert min(width, 384) <= piece.shape[2] <= min(width, 512)
        assert (piece[0, 1:] >= piece[0, :-1]).all()  # never upside down
    mirrored = [bool(piece[1, 0, 0] > piece[1, 0, -1]) for piece in pieces]
    assert 5 < sum(mirrored) < 35
    if max(height, width) > 400:
        assert len({(piece.shape, int(piece[1].min()), int(piece[1].max())) for piece in pieces}) > 20


def test_the_quantiser_takes_the_cheaper_code_only_with_the_rate() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY.transform.levels[0], 8)
    with torch.no_grad():
        quantizer.codebooks[0, 0], quantizer.codebooks[0, 1] = 0.0, 0.9
        quantizer.codebooks[0, 2:] = 100.0
        quantizer.logits[0].weight.zero_()
        quantizer.logits[0].bias.zero_()
        quantizer.logits[0].bias[0] = 10.0  # about 14 bits cheaper
    latents, context = torch.full((1, 4), 0.8), torch.zeros(1, 8)
    assert quantizer(latents, context, 0.0).codes.item() == 1
    assert quantizer(latents, context, 1.0).codes.item() == 0


def test_a_position_that_has_ended_costs_no_more_bits() -> None:
    """Alone and among others, whose number is no multiple of anything."""
    torch.manual_seed(2)
    quantizer = ResidualQuantizer(TINY.transform.levels[2], 8).eval()
    with torch.no_grad():
        quantizer.codebooks[:, 0] = 0
        quantizer.logits[0].bias[0] = 6.0
    latents, context = torch.randn(300, 4), torch.randn(300, 8)
    found = quantizer(latents, context, 1.0)
    ended = found.codes[:, 0] == 0
    assert 0 < ended.sum() < 300
    first, second = (
        -LOG2_E
        * F.log_softmax(quantizer.raw_logits(stage, quantizer.hidden[stage](context), total), -1).gather(1, found.codes[:, stage, None])
        for stage, total in enumerate((torch.zeros(300, 4), quantizer.codebooks[0][found.codes[:, 0]]))
    )
    assert torch.allclose(found.bits, (first + second * ~ended[:, None])[:, 0], atol=1e-4)
    for index in range(0, 300, 50):
        alone = quantizer(latents[index : index + 1], context[index : index + 1], 1.0)
        assert torch.equal(alone.codes[0], found.codes[index])
        assert torch.allclose(alone.bits[0], found.bits[index], atol=1e-4)
    found.bits.sum().backward()
    assert torch.isfinite(quantizer.logits[1].weight.grad).all()


@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_cross_entropy_and_its_gradient_are_those_of_pytorch(kind: torch.dtype, close: float) -> None:
    torch.manual_seed(3)
    logits = (4 * torch.randn(2 * pixelcnn.CACHED_ROWS + 7, 50)).to(kind)
    values = torch.randint(1, 50, (len(logits),))
    logits[::3, 0] = pixelcnn.IMPOSSIBLE
    weights, gradients, found = torch.rand(len(logits)), [], []
    for function in (pixelcnn.CrossEntropy.apply, lambda x, v: F.cross_entropy(x.float(), v, reduction="none")):
        inputs = logits.clone().requires_grad_()
        nats = function(inputs, values)
        (nats * weights).sum().backward()
        assert inputs.grad is not None
        found.append(nats.detach())
        gradients.append(inputs.grad.float())
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert torch.allclose(gradients[0], gradients[1], rtol=2 * close, atol=close)
    assert not gradients[0][::3, 0].any()


def test_dead_codes_are_split_from_live_ones() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY.transform.levels[0], 8)
    quantizer.usage.fill_(1.0)
    quantizer.usage[0, 5], quantizer.usage[0, 3] = 0.0, 50.0
    assert quantizer.split_dead(0.02) == 1
    assert (quantizer.codebooks[0, 5] - quantizer.codebooks[0, 3]).abs().max() < 4
    assert torch.equal(quantizer.logits[0].bias[5], quantizer.logits[0].bias[3])
    assert quantizer.usage[0, 5] == quantizer.usage[0, 3] == 25


def test_skipped_files_are_counted_and_empty_folders_refused(photographs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert len(load_images(photographs, 96, said.append)) == 3
    assert said[0].startswith("2 files")
    with pytest.raises(TrainingError, match="no usable photograph"):
        load_images(tmp_path, 96)
    with pytest.raises(TrainingError, match="not a folder"):
        load_images(tmp_path / "missing", 96)


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_without_checkpoints_is_not_replaced(resume: bool, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / CARD).touch()
    with pytest.raises(TrainingError, match="holds a model"):
        train(photographs, tmp_path, TrainOptions(preset="tiny", max_minutes=0.05, resume=resume), Silent())
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


@pytest.mark.parametrize("out", ["photographs", "photographs/model", "."])
def test_neither_samples_nor_held_out_photographs_are_trained_on(out: str, tmp_path: Path) -> None:
    folder, checkpoints = tmp_path / "photographs", tmp_path / out / "checkpoints"
    (folder / "valid").mkdir(parents=True)
    checkpoints.mkdir(parents=True)
    for path, side in ((folder / "a.png", 97), (folder / "valid/b.png", 98), (checkpoints / "samples.png", 99)):
        Pillow.fromarray(noise(side, side)).save(path)
    for below, valid in ((folder, folder / "valid"), (folder / "valid", folder)):
        data = load_data(below, tmp_path / out, TrainOptions(preset="tiny", valid=valid), Silent())
        sides = [[image.shape[1] for image in images] for images in data]
        assert sides == ([[97], [98]] if valid.parent == below else [[98], [97]])


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "-1"), ("--seed", "20251128123456"), ("--max-minutes", "nan"), ("--max-minutes", "inf")]
)
def test_numbers_that_a_training_cannot_have(option: str, value: str, tmp_path: Path) -> None:
    result = vqcodec("train", "none", "--out", "out", option, value, cwd=tmp_path)
    assert result.returncode == 2
    assert option.encode() in result.stderr.splitlines()[-1]


def test_train_through_the_command_line(photographs: Path, tmp_path: Path) -> None:
    train = ["train", photographs, "--out", "out", "--preset", "tiny", "--threads", "1"]
    first = vqcodec(*train, "--max-minutes", "0.1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr.decode()
    assert first.stdout == b""
    card = json.loads((tmp_path / "out/model.json").read_text())
    assert card["name"] == "out"
    assert card["training"]["transform"]["steps"] > 0
    assert card["training"]["prior"]["steps"] > 0
    assert card["training"]["adaptation_pieces"] > 0
    assert load_model(tmp_path / "out").transform.basis.any()  # type: ignore[union-attr]
    again = vqcodec(*train, "--max-minutes", "0.1", cwd=tmp_path)
    assert again.returncode == 1
    assert b"--resume" in again.stderr
    resumed = vqcodec(*train, "--max-minutes", "0.15", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr.decode()
    more = json.loads((tmp_path / "out/model.json").read_text())
    assert more["training"]["transform"]["steps"] > card["training"]["transform"]["steps"]
    source = IMAGES / "chelsea.png"
    assert vqcodec("compress", source, "x.vq", "-m", "out", cwd=tmp_path).returncode == 0
    assert vqcodec("decompress", "x.vq", "x.png", "-m", "out", cwd=tmp_path).returncode == 0
    assert load_image(tmp_path / "x.png").shape == load_image(source).shape
    for effort in ("0", "9"):
        assert vqcodec("compress", source, f"{effort}.vq", "-m", "out", "--effort", effort, cwd=tmp_path).returncode == 0
    assert (tmp_path / "0.vq").read_bytes() != (tmp_path / "9.vq").read_bytes()


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_the_papers_recipes_train(name: str) -> None:
    preset = PRESETS[name]
    trainer = TransformTrainer(preset.config.transform, Schedule(10, FOREVER), CPU, plain=preset.plain)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    errors = []
    for trainer.step in range(6):
        trainer.prepare(lambda step: images, 0.5)
        before = trainer.model.quantizers[2].codebooks.clone()
        errors.append(trainer.train_step(images, 0.5)["mse"].item())
        assert not torch.equal(before, trainer.model.quantizers[2].codebooks)  # moving averages of what they stand for
    assert errors[-1] < errors[0]
    low, high = (trainer.average.encode(images, torch.full((2,), quality), 1) for quality in (0.1, 0.9))
    assert [c.shape[1] for c in low] == [level.stages for level in preset.config.transform.levels]
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))  # one rate, whatever the quality
    bits = pixelcnn.PixelCNN(preset.config)(low, torch.tensor([0, 5000]))
    coded = CodedImage([c[0].short() for c in low], 5000)
    assert [len(level) for level in evaluate_prior(pixelcnn.PixelCNN(preset.config), [coded])] == [b.shape[1] for b in bits]
    assert [b.shape[1] for b in bits] == [c.shape[1] and c.shape[1] + 1 for c in low]  # a level without stages has no lengths


def test_a_training_starts_from_a_smaller_model(small: tuple[VQVAE, pixelcnn.PixelCNN, Path]) -> None:
    transform, _, folder = small
    weights = exported_weights(folder, TINY.transform)
    same = TransformTrainer(TINY.transform, Schedule(10, FOREVER, seed=5), CPU, start=weights)
    assert same.continued
    images, quality = torch.rand(1, 3, 64, 64), torch.tensor([0.5])
    with torch.no_grad():
        expected = transform.latents_for_start(images, quality)
        found = same.average.latents_for_start(images, quality)
        assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(expected, found, strict=True))  # half precision
        assert torch.allclose(transform.quantizers[2].codebooks, same.average.quantizers[2].codebooks, atol=0.01)
    top, middle, bottom = TINY.transform.levels
    grown = replace(TINY.transform, decoder_depths=(2, 1, 2, 1), levels=(top, replace(middle, dim=6), replace(bottom, stages=3)))
    more = TransformTrainer(grown, Schedule(10, FOREVER, seed=5), CPU, start=weights)
    assert not more.continued  # its quantisers must start anew
    with torch.no_grad():
        found = more.average.latents_for_start(images, quality)
        assert all(torch.allclose(a, b[:, : a.shape[1]], atol=0.05) for a, b in zip(expected, found, strict=True))
    with pytest.raises(TrainingError, match="does not fit"):
        TransformTrainer(replace(TINY.transform, widths=(12, 16, 16, 8)), Schedule(10, FOREVER), CPU, start=weights)
    with pytest.raises(TrainingError, match="no exported model"):
        exported_weights(folder / "nowhere", TINY.transform)


def test_a_training_goes_on_with_more_stages_and_another_range_of_qualities(
    small: tuple[VQVAE, pixelcnn.PixelCNN, Path], photographs: Path
) -> None:
    """The grown model is at first what the smaller one was at each Lagrangian; then its new stages get codes."""
    transform, prior, folder = small
    *coarser, bottom = TINY.transform.levels
    factor = TINY.transform.lambda_max / TINY.transform.lambda_min
    wider = replace(
        TINY.transform,
        levels=(*coarser, replace(bottom, stages=4)),
        anchors=4,
        lambda_max=TINY.transform.lambda_max * factor**0.5,  # a third more than before: the old anchors stay anchors
    )
    sampler = CropSampler(load_images(photographs, 96, lambda _: None), Schedule(40, FOREVER, batch=2, crop=96), CPU)
    trainer = TransformTrainer(wider, Schedule(40, FOREVER, batch=2), CPU, start=exported_weights(folder, wider))
    assert trainer.kept == [1, 2, 2]
    images = sampler(0)
    with torch.no_grad():
        expected = transform(images, torch.tensor([0.3, 0.9]), 1.0, levels=3)
        found = trainer.average(images, torch.tensor([0.2, 0.6]), 1.0, levels=3)
    assert (expected.images - found.images).abs().max() < 1e-3
    assert not any(codes[:, 2:].any() for codes in found.codes)
    trainer.prepare(sampler, 0.0)
    assert trainer.model.quantizers[2].codebooks[2:].abs().sum(-1).count_nonzero() == 2 * 63  # code 0 is zero
    with torch.no_grad():
        started = trainer.average(images, torch.tensor([0.2, 0.6]), 1.0, levels=3)
    assert started.distance[2].sum() < expected.distance[2].sum()
    context, total = torch.randn(20, 16), torch.randn(20, 4)
    bottom_rates = trainer.model.quantizers[2]
    with torch.no_grad():
        last, *new = (bottom_rates.raw_logits(stage, bottom_rates.hidden[stage](context), total) for stage in (1, 2, 3))
    for logits in new:  # they end positions as the last old one does, and know nothing else
        assert torch.equal(logits[:, 0], last[:, 0])
        assert torch.allclose(logits[:, 1:], last[:, 1:].mean(1, keepdim=True), atol=1e-5)
    for quantizer, old in zip(trainer.model.quantizers, transform.quantizers, strict=True):
        assert torch.allclose(quantizer.codebooks[: len(old.codebooks)], old.codebooks, atol=0.01)
    assert np.isfinite(trainer.train_step(images, 0.1)["loss"].item())

    config = replace(TINY, transform=wider, prior=replace(TINY.prior, quality_anchors=4))
    going_on = PriorTrainer(config, Schedule(40, FOREVER), CPU, exported_prior(folder, config))
    assert going_on.continued
    old_table, table = (net.levels[2].quality.integers() for net in (prior, going_on.average))
    assert torch.equal(old_table, table[:3])
    assert torch.equal(table[2], table[3])


def test_new_bottom_latents_hold_what_the_model_leaves(small: tuple[VQVAE, pixelcnn.PixelCNN, Path], photographs: Path) -> None:
    transform, _, folder = small
    *coarser, bottom = TINY.transform.levels
    wider = replace(TINY.transform, levels=(*coarser, replace(bottom, stages=3, dim=10)))
    schedule = Schedule(40, FOREVER, batch=2, crop=96)
    sampler = CropSampler(load_images(photographs, 96, lambda _: None), schedule, CPU)
    trainer = TransformTrainer(wider, schedule, CPU, start=exported_weights(folder, wider))
    assert trainer.continued
    assert not trainer.started
    images, quality = sampler(0), torch.tensor([0.6, 0.9])
    with torch.no_grad():
        expected, found = (model(images, quality, 1.0) for model in (transform, trainer.average))
    assert (expected.images - found.images).abs().max() < 1e-3
    assert not any(
        level.codebooks[: len(old.codebooks), :, 4:].any()
        for level, old in zip(trainer.model.quantizers, transform.quantizers, strict=True)
    )
    trainer.prepare(sampler, 0.0)
    there, back = trainer.model.encoder.direct.weight[4:], trainer.model.decoder.direct.weight[:, 4:]
    with torch.no_grad():
        new = F.conv2d(images - 0.5, there, stride=8, padding=8)
        better = found.images + F.pixel_shuffle(F.conv2d(new, back, padding=1), 8)
    before, after = ((shown - images).square().mean().item() for shown in (found.images, better))
    assert after < 0.75 * before  # an untrained model leaves much, and six latents of 192 take the most of it
    assert trainer.model.quantizers[2].codebooks[2, 1:, 4:].abs().sum(-1).all()
    assert np.isfinite(trainer.train_step(images, 0.1)["loss"].item())


@pytest.mark.parametrize("plain", [False, True])
def test_the_export_finds_the_codes_that_torch_finds(plain: bool) -> None:
    """Also of a level without stages, and of nearest neighbours whatever their rate."""
    torch.manual_seed(3)
    levels = (LevelConfig(0, 32, 4), *TINY.transform.levels[1:]) if plain else TINY.transform.levels
    transform = VQVAE(replace(TINY.transform, levels=levels), plain).eval()
    with torch.no_grad():
        for name, parameter in transform.named_parameters():
            if "posterior" in name:
                parameter.mul_(4)
    round_weights(transform)
    image = load_image(IMAGES / "astronaut.png")[40:168, 60:220]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    runtime = open_transform(transform.config, *export_transform(transform))
    for effort, paths in ((0, PATHS[0]), (3, PATHS[3])):
        with torch.no_grad():
            expected = transform.encode(pixels, torch.tensor([0.7]), paths)
        found = runtime.encode(image, 7000, effort)
        assert [code_map.shape for code_map in found] == [tuple(codes.shape[1:]) for codes in expected]
        same = [(code_map == codes[0].numpy()).ravel() for code_map, codes in zip(found, expected, strict=True)]
        assert np.concatenate(same).mean() > 0.999  # sums in another order tip a choice at times
        assert len(np.unique(found.bottom)) > 4


def states_of(transform: VQVAE, codes: list[torch.Tensor], quality: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's states at the middle and the bottom level, for these codes."""
    batch, _, height, width = codes[0].shape
    middle = transform.refined(0, codes[0], transform.decoder.start.expand(batch, -1, height, width), quality)
    return middle, transform.refined(1, codes[1], middle, quality)


def wanted_of(
    transform: VQVAE, images: torch.Tensor, codes: list[torch.Tensor], quality: torch.Tensor, coordinates: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the middle and the bottom latents should go."""
    states = states_of(transform, codes, quality)
    middle = wanted_middle(transform, images, (codes[1], codes[2]), states, quality, coordinates)
    return middle, wanted_bottom(transform, images, codes[2], states[1], quality, coordinates)


@pytest.mark.parametrize("quality", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_wanted_latents_follow_the_gradient(adapted: bool, level: int, quality: float) -> None:
    """torch's own differentiation, of lambda times the squared error a pixel."""
    torch.manual_seed(4)
    transform = VQVAE(PRESETS["tiny"].config.transform).eval()
    decoder = transform.decoder
    count = 1 if adapted else 2
    images, qualities = torch.rand(count, 3, 64, 96), torch.full((count,), quality)
    coordinates = torch.randint(-3, 4, (transform.config.adaptations, 2, 3)).float() if adapted else None
    with torch.no_grad():
        decoder.adapt.weight.normal_(0, 0.1)
        decoder.adapt.bias.normal_(0, 0.1)
        for scale in decoder.scales:
            scale.log_scale.normal_(0, 0.3)
        codes = transform.encode(images, qualities, 1)
        states = states_of(transform, codes, qualities)
        wanted = wanted_of(transform, images, codes, qualities, coordinates)[level - 1]
    gain, anchors = transform.gain(qualities), transform.anchors(qualities)
    latents = {index: (transform.looked_up(index, codes[index], gain) * gain).detach() for index in (1, 2)}
    values = latents[level].requires_grad_()
    state = states[0]
    for index, found in latents.items():
        state = decoder.refine(index, state + decoder.enter[index](found / gain), anchors)
    shown = decoder.finish(decoder.features(state, anchors), latents[2] / gain, coordinates)
    assert 0.01 < ((shown < 0) | (shown > 1)).float().mean() < 0.99  # the clamp has a say
    error = shown + (shown.clamp(0, 1) - shown).detach() - images
    weighed = (transform.lagrangian(qualities) * error.square().mean(1).sum((1, 2))).sum()
    (gradient,) = torch.autograd.grad(weighed, values)
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(wanted, values.detach() - gradient / 2, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_the_export_improves_as_torch_does(small: tuple[VQVAE, pixelcnn.PixelCNN, Path]) -> None:
    torch.manual_seed(5)
    transform, _, folder = small
    transform.eval()
    image = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        quality = torch.tensor([0.5])
        pixels = image.permute(2, 0, 1)[None].float() / 255
        codes = transform.encode(pixels, quality, 1)
        states = states_of(transform, codes, quality)
        coordinates = torch.randint(-3, 4, (transform.config.adaptations, 2, 3)).float()
        wanted = wanted_of(transform, pixels, codes, quality, coordinates)
        assert not torch.equal(wanted[0], wanted_of(transform, pixels, codes, quality, None)[0])
    exported = load_model(folder).transform
    known = {"image": image[None], "state": states[0], "bottom_state": states[1], "quality": quality}
    known |= {"middle": codes[1][0].int(), "bottom": codes[2][0].int(), "coordinates": coordinates}
    for name, expected in zip(("wanted_middle", "wanted"), wanted, strict=True):
        (found,) = sessions.run(exported.improvers[name](), {key: x.numpy() for key, x in known.items()}, last=True).values()
        np.testing.assert_allclose(found, flat(expected).numpy(), atol=1e-3 * float(expected.abs().max()))


def test_graphs_keep_no_notes_of_the_exporter(small: tuple[VQVAE, pixelcnn.PixelCNN, Path]) -> None:
    """They name what it saw, files of the machine among it, and would be a third of the graphs."""
    for path in small[2].glob("*.onnx"):
        assert b"pkg." not in path.read_bytes()


def test_a_model_without_an_improver_replaces_one_that_has_it(small: tuple[VQVAE, pixelcnn.PixelCNN, Path], tmp_path: Path) -> None:
    """The latents of a plain transform have no scale that a step could go by."""
    folder = tmp_path / "either"
    shutil.copytree(small[2], folder)
    for plain in (False, True):
        if plain:
            export_model(export_transform(VQVAE(TINY.transform, plain)), small[1], folder, "either", {})
        model = load_model(folder)
        for output, name in IMPROVERS.items():
            assert (folder / name).exists() is (output in model.transform.improvers) is not plain
        assert model.encode(np.zeros((40, 40, 3), np.uint8), 50, effort=9).top.shape[1:] == (2, 2)


@pytest.mark.parametrize("empty", [(0, 1), (2,)])
@pytest.mark.parametrize("plain", [False, True])
def test_models_with_a_level_without_stages_encode_at_every_effort(empty: tuple[int, ...], plain: bool, tmp_path: Path) -> None:
    levels = tuple(replace(level, stages=0) if index in empty else level for index, level in enumerate(TINY.transform.levels))
    config = replace(TINY, transform=replace(TINY.transform, levels=levels))
    export_model(export_transform(VQVAE(config.transform, plain)), pixelcnn.PixelCNN(config), tmp_path / "model", "model", {})
    model, image = load_model(tmp_path / "model"), load_image(IMAGES / "astronaut.png")[40:140, 60:190]
    for effort in range(len(PATHS)):
        codes = codec.decode_codes(codec.compress(image, 50, model, effort=effort), model)
        assert [len(code_map) for code_map in codes] == [level.stages for level in levels]


def test_an_interrupted_export_leaves_no_model(small: tuple[VQVAE, pixelcnn.PixelCNN, Path], tmp_path: Path) -> None:
    """And not new files beside old ones."""
    folder = tmp_path / "model"
    shutil.copytree(small[2], folder)
    (folder / DECODE).unlink()
    (folder / DECODE).mkdir()  # which no file replaces
    graphs = {path.name: path.read_bytes() for path in small[2].glob("*.onnx")}
    exported = ExportedTransform(graphs, load_numpy(small[2] / WEIGHTS))
    with pytest.raises(OSError, match=DECODE):
        export_model(exported, small[1], folder, "model", {})
    with pytest.raises(ModelError, match=CARD):
        load_model(folder)
    (folder / DECODE).rmdir()
    export_model(exported, small[1], folder, "model", {})
    assert load_model(folder).id == load_model(small[2]).id


def test_bfloat16_only_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (({"avx512_bf16": True}, True), ({"avx512_bf16": False, "avx2": True}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        with CPU.autocast():
            assert torch.is_autocast_enabled("cpu") is expected


def test_two_processes_learn_what_one_learns_from_the_joint_batch(tmp_path: Path) -> None:
    """Gradients, and codebooks that are moving averages."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.gradients", str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    gradients.write(CPU, one)
    for name, *others in (("gradients", "gradients"), ("codebooks-0", "codebooks-0", "codebooks-1")):
        expected = load_file(one / f"{name}.safetensors")
        for other in others:
            found = load_file(two / f"{other}.safetensors")
            assert expected.keys() == found.keys()
            for key, tensor in expected.items():
                largest = tensor.abs().max().item() if tensor.numel() else 0.0
                assert torch.allclose(tensor, found[key], rtol=1e-3, atol=1e-5 * largest + 1e-8), (other, key)


def test_a_search_with_more_paths_finds_cheaper_codes() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(TINY.transform.levels[2], 8).eval()
    latents, context = 1.5 * torch.randn(500, 4), torch.randn(500, 8)
    costs = []
    for paths in (1, 2, 8):
        found = quantizer(latents, context, 1.0, paths)
        costs.append((found.distance + found.bits).mean().item())
    assert costs[0] > costs[1] > costs[2]


def test_all_paths_find_the_best_codes() -> None:
    """Two stages of 64 codes, 64 paths kept: an exhaustive search."""
    torch.manual_seed(1)
    quantizer = ResidualQuantizer(TINY.transform.levels[2], 8).eval()
    latents, context = torch.randn(20, 4), torch.randn(20, 8)
    found = quantizer(latents, context, 1.0, 64)
    best = torch.full((20,), float("inf"))
    with torch.no_grad():
        first, second = [hidden(context) for hidden in quantizer.hidden]
        bits_of_first = -LOG2_E * quantizer.raw_logits(0, first, torch.zeros(20, 4)).log_softmax(-1)
        for code in range(64):
            total = quantizer.codebooks[0, code].expand(20, 4)
            bits = bits_of_first[:, code, None] - LOG2_E * quantizer.raw_logits(1, second, total).log_softmax(-1)
            distance = torch.cdist(latents - total, quantizer.codebooks[1]).square()
            best = torch.minimum(best, (bits + distance).min(1).values)
    assert torch.allclose(found.distance + found.bits, best, atol=1e-3)
