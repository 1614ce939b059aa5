"""Pre-train the compact model on synthetic pictures: interactive, resumable, bounded by minutes or by steps.

Each step renders a batch of pictures, encodes each once, and plays a short annotation session on up to four of its
objects: a box or one point, at times with several points more, then one to four corrections where the mask is wrong,
with the previous logits fed back 60 % of the time (after MedicoSAM, Archit 2025). Everything random in step `n`
follows from (seed, n) alone, so that a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, sha256_of
from SAMFineTuneLib.models.architectures import compact
from SAMFineTuneLib.models.preprocess import stretched
from SAMFineTuneLib.models.spec import ModelSpec, read_model_folder, write_spec
from SAMFineTuneLib.training.simulated_annotator import correct, first_prompts, more_points, offer_neighbour_masks
from SAMFineTuneLib.training.synthetic import GENERATOR_VERSION, SIZE, synthetic_picture

OBJECTS = 4
ROUNDS = (2, 2, 2, 2, 2, 2, 3, 3, 3, 5)
"""Answers of a session, one of these; most are short, because decoding costs more than encoding here."""
SEVERAL = 0.2
"""Part of the steps whose sessions begin with more points, up to MOST_POINTS, beside the box or the first point."""
MOST_POINTS = 10
LEARNING_RATE = 8e-4
WEIGHT_DECAY = 0.02
WARM_UP = 0.03
EMA_DECAY = 0.999
CHECKPOINT_SECONDS = 180
CHECKPOINT_NAME = "checkpoint.pt"


# ---------------------------------------------------------------- pictures and first prompts


def _first_point(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """(x, y) of a pixel of `mask`, the likelier the farther it lies from the border."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    depth = ndimage.distance_transform_edt(inside) ** rng.choice([0.0, 1.0, 3.0]) * inside
    index = rng.choice(depth.size, p=depth.ravel() / depth.sum())
    return np.array([index % depth.shape[1] - 1 + left, index // depth.shape[1] - 1 + top], np.float32)


def _box(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """(x0, y0, x1, y1) of `mask`, tight or each side moved by up to a tenth of the box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    slack = rng.uniform(-0.1, 0.1, 4) * sides if rng.random() < 0.6 else rng.uniform(-0.5, 0.5, 4)
    return np.clip(box + slack, 0, SIZE - 1).astype(np.float32)


class SyntheticBatches(torch.utils.data.Dataset):
    """Batch `n` of a run: a pure function of (seed, n)."""

    def __init__(self, seed: int, batch_size: int, steps: int = 1 << 30) -> None:
        self.seed, self.batch_size, self.steps = seed, batch_size, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """`image` (B, 1, 128, 128) normalised; of four objects each `target` (B, 4, 64, 64) 0..1, `box`, `point`."""
        rows = [self._one((self.seed, step, i)) for i in range(self.batch_size)]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def _one(self, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        picture = synthetic_picture(seed, OBJECTS)
        rng = np.random.default_rng((*seed, 1))
        masks = picture.masks[np.arange(OBJECTS) % len(picture.masks)]
        rows, columns = picture.shape
        content = stretched(picture.image[:rows, :columns])
        image = np.zeros((SIZE, SIZE), np.float32)  # padding is 0 after normalisation
        image[:rows, :columns] = (content - compact.PIXEL_MEAN) / compact.PIXEL_STD
        return {
            "image": image[None],
            "target": masks.reshape(OBJECTS, SIZE // 2, 2, SIZE // 2, 2).mean((2, 4), dtype=np.float32),
            "box": np.stack([_box(rng, mask) for mask in masks]),
            "point": np.stack([_first_point(rng, mask) for mask in masks]),
        }


def _batches(dataset: SyntheticBatches, start: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches from step `start` on, rendered ahead in `workers` other processes (0: in this one)."""
    extra = {"multiprocessing_context": "spawn", "prefetch_factor": 6} if workers else {}
    order = range(start, len(dataset))
    return iter(torch.utils.data.DataLoader(dataset, None, sampler=order, num_workers=workers, **extra))


# ---------------------------------------------------------------- loss


def _candidate_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, 4, 64, 64) against target (n, 64, 64) -> Dice + cross-entropy (n, 4) and real IoU (n, 4)."""
    target = target[:, None]
    probability = logits.sigmoid()
    area = target.sum((2, 3))
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + area + 1)
    # Divided by the object's size and not the picture's, or small objects would not count.
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none").sum((2, 3))
    with torch.no_grad():
        answer, truth = logits > 0, target > 0.5
        union = (answer | truth).sum((2, 3))
        iou = (answer & truth).sum((2, 3)) / union.clamp(min=1)
    return dice + 0.5 * cross_entropy / (2 * area).clamp(min=256), iou


def _session_loss(logits: Tensor, predicted_iou: Tensor, target: Tensor, ambiguous: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of one round and the real IoU of the four candidates.

    One ambiguous point (`ambiguous` (n,)): the best of candidates 1..3 learns, the others and candidate 0 a little.
    Else: candidate 0 learns, the best of the others a little, so that comparing all predicted IoU makes sense.
    """
    losses, iou = _candidate_losses(logits, target)
    best = losses[:, 1:].min(dim=1).values
    single = losses[:, 0]
    several = best + 0.05 * losses[:, 1:].mean(1) + 0.3 * single
    mask_loss = torch.where(ambiguous, several, single + 0.2 * best).mean()
    return mask_loss + F.mse_loss(predicted_iou, iou), iou


def _mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the hardware has them: a third less time; weights and losses stay in 32 bits."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _rounds(model: compact.CompactModel, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Play one batch: first prompts and a few corrections. -> mean loss, mean real IoU of the first answers."""
    with _mixed_precision(batch["image"].device):
        encoded = model.encode(batch["image"])
    embedding = {name: value.repeat_interleave(OBJECTS, 0) for name, value in encoded.items()}
    target, box, point = (batch[name].flatten(0, 1) for name in ("target", "box", "point"))
    by_box = (torch.rand(len(target), generator=generator) < 0.5).to(target.device)
    prompts = offer_neighbour_masks(first_prompts(box, point, by_box), target, by_box, generator)
    rounds = int(ROUNDS[torch.randint(len(ROUNDS), (), generator=generator)])
    ambiguous = ~by_box & (prompts.has_logits == 0)
    if torch.rand((), generator=generator) < SEVERAL:
        count = int(torch.randint(1, MOST_POINTS + 1, (), generator=generator))
        prompts = more_points(prompts, target, count, generator)
        ambiguous = torch.zeros_like(ambiguous)
    total, first_iou = 0.0, None
    for number in range(rounds):
        with _mixed_precision(target.device):
            answer = model.decode(embedding, prompts.coords, prompts.labels, prompts.logits, prompts.has_logits)
        logits, predicted = (values.float() for values in answer)
        loss, iou = _session_loss(logits, predicted, target, ambiguous)
        total = total + loss
        choice = torch.where(ambiguous, predicted[:, 1:].argmax(1) + 1, 0)
        if number == 0:
            first_iou = iou.gather(1, choice[:, None]).mean()
        if number < rounds - 1:
            chosen = logits.detach().gather(1, choice[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
            prompts = correct(prompts, chosen, target, generator)
            ambiguous = torch.zeros_like(ambiguous)
        if number == 0:
            # Decoding costs more than encoding here: every second object is enough to learn corrections from.
            part = torch.randperm(len(target), generator=generator)[: len(target) // 2].to(target.device)
            prompts, target, ambiguous = prompts.subset(part), target[part], ambiguous[part]
            embedding = {name: value[part] for name, value in embedding.items()}
    return total / rounds, first_iou


# ---------------------------------------------------------------- the run


@dataclass
class Run:
    """Everything a checkpoint holds."""

    model: compact.CompactModel
    average: compact.CompactModel
    optimizer: torch.optim.Optimizer
    seed: int
    batch_size: int
    step: int = 0
    elapsed: float = 0.0
    origin: str = ""
    """What the weights of step 0 were: empty when random, else the source of the model they were taken from."""

    def state(self) -> dict:
        """Tensors and plain numbers only, so that it can be read with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "step": self.step,
            "elapsed": self.elapsed,
            "origin": self.origin,
        }


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases, norms and embeddings."""
    decayed = {
        f"{name}.weight" for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d))
    }  # fmt: skip
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False], "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.98), foreach=True,
    )  # fmt: skip


def _new_run(seed: int, batch_size: int, device: torch.device, start: Path | None = None) -> Run:
    weights, origin = (None, "") if start is None else _start_weights(start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = compact.build_compact(weights).to(device).train()
    average = deepcopy(model).eval().requires_grad_(False)
    return Run(model, average, _optimizer(model), seed, batch_size, origin=origin)


def _start_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Weights of an earlier compact model, and how that one was made."""
    from safetensors.torch import load_file

    model = read_model_folder(folder)
    spec = model.spec
    if spec.architecture != "compact":
        raise UserError(f"Pre-training starts from compact models; {spec.id} is of architecture {spec.architecture}.")
    return load_file(model.file("weights")), spec.source


def load_run(path: Path, device: torch.device | str = "cpu") -> Run:
    """The run a checkpoint was written by; a damaged or foreign file is refused."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        run = _new_run(state["seed"], state["batch_size"], torch.device(device))
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise UserError(f"{path.name} is not a usable pre-training checkpoint; delete it to start anew.") from error
    run.step, run.elapsed, run.origin = state["step"], state["elapsed"], state.get("origin", "")
    return run


def _save_run(run: Run, path: Path) -> None:
    with atomic_write(path) as temporary:
        torch.save(run.state(), temporary)


def learning_rate(fraction: float) -> float:
    """Linear warm-up over the first 3 % of the budget, then a cosine to zero; `fraction` of steps or of minutes."""
    if fraction < WARM_UP:
        return LEARNING_RATE * (fraction + 1e-3) / (WARM_UP + 1e-3)
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * min((fraction - WARM_UP) / (1 - WARM_UP), 1)))


def _train_step(run: Run, batch: dict[str, Tensor], rate: float) -> tuple[float, float]:
    """One optimiser step and one step of the moving average. -> loss, mean IoU of the first answers."""
    state = np.random.SeedSequence((run.seed, run.step)).generate_state(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss, iou = _rounds(run.model, batch, generator)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    decay = min(EMA_DECAY, run.step / (run.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - decay)
    return float(loss.detach()), float(iou)


def _fraction(run: Run, minutes: float | None, steps: int | None) -> float:
    """How much of the budget is used: the larger of time and steps."""
    by_steps = run.step / steps if steps else 0.0
    by_time = run.elapsed / (60 * minutes) if minutes else 0.0
    return max(by_steps, by_time)


def _train(
    run: Run,
    checkpoint: Path,
    minutes: float | None,
    steps: int | None,
    progress: Callable[[dict], None] | None,
    workers: int,
) -> None:
    """Train until the budget is used; write the checkpoint every few minutes and at the end."""
    device = next(run.model.parameters()).device
    batches = _batches(SyntheticBatches(run.seed, run.batch_size), run.step, workers)
    saved = time.monotonic()
    while (fraction := _fraction(run, minutes, steps)) < 1:
        started = time.monotonic()
        batch = {name: value.to(device) for name, value in next(batches).items()}
        rate = learning_rate(fraction)
        loss, iou = _train_step(run, batch, rate)
        run.elapsed += time.monotonic() - started
        if progress:
            progress({
                "step": run.step, "loss": loss, "iou": iou, "rate": rate, "fraction": fraction,
                "pictures": run.step * run.batch_size, "minutes": run.elapsed / 60,
            })  # fmt: skip
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save_run(run, checkpoint)
            saved = time.monotonic()
    _save_run(run, checkpoint)


def pretrain_synthetic(
    output_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    resume: bool = False,
    start: Path | None = None,
    progress: Callable[[dict], None] | None = None,
    device: str = "auto",
    workers: int = 1,
) -> Path:
    """Train the compact model and write a complete model folder. -> the folder.

    The budget is `minutes` of wall clock, or `steps`, or whichever ends first. Only a run bounded by `steps` alone is
    reproducible bit by bit, since the learning rate follows the used part of the budget. `resume` goes on from the
    checkpoint in the folder, if there is one; else the weights of the model folder `start` are the first, or random
    ones. `progress` gets a dict after every step. `workers` processes render
    pictures ahead; with any, the caller's script needs the usual `if __name__ == "__main__"` guard.
    """
    if not minutes and not steps:
        raise UserError("Pre-training needs a number of minutes or of steps.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    output_folder = Path(output_folder)
    checkpoint = output_folder / CHECKPOINT_NAME
    if resume and checkpoint.exists():
        run = load_run(checkpoint, device)
    else:
        run = _new_run(seed, batch_size, torch.device(device), start)
    _train(run, checkpoint, minutes, steps, progress, workers)
    return write_model_folder(run, output_folder)


# ---------------------------------------------------------------- the finished folder


def write_model_folder(run: Run, folder: Path) -> Path:
    """Write `model.safetensors` (averaged weights, half precision), both ONNX graphs and `model.json` into `folder`."""
    from safetensors.torch import save_file

    from SAMFineTuneLib.models.export import export_onnx

    folder = Path(folder)
    half = {name: value.detach().cpu().half().contiguous() for name, value in run.average.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(half, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    # The graphs are exported from the rounded weights, so that both engines give the same answer.
    for graph in export_onnx(compact.build_compact(half), _spec(run), folder):
        _store_weights_as_half(graph)
    write_spec(_spec(run, folder), folder)
    return folder


def _store_weights_as_half(graph: Path) -> None:
    """Halve an ONNX file whose weights are rounded already: stored in 16 bits, computed with in 32 as before."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 256 or (values.astype(np.float16) != values).any():
            continue
        name, stored = tensor.name, f"{tensor.name}_half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    with atomic_write(graph) as temporary:
        onnx.save(model, temporary)


def _spec(run: Run, folder: Path | None = None) -> ModelSpec:
    """Description of the trained model, with the digests of its files when they lie in `folder`."""
    files = {"weights": "model.safetensors", "encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    return ModelSpec(
        id="compact",
        name="SAMFineTune compact",
        architecture="compact",
        input_size=SIZE,
        coordinates="centred",
        pixel_range="percentiles",
        pixel_mean=(compact.PIXEL_MEAN,),
        pixel_std=(compact.PIXEL_STD,),
        channels=1,
        embedding_size=compact.GRID_SIZE,
        low_res_size=compact.LOW_RES_SIZE,
        zoom=True,
        ranks_all=True,
        one_piece=True,
        licence="Apache-2.0",
        source=(
            f"trained by samfinetune pretrain --synthetic: generator {GENERATOR_VERSION}, seed {run.seed}, "
            f"{run.step * run.batch_size} pictures in {run.step} steps, {run.elapsed / 60:.0f} minutes"
            + (f", after: {run.origin}" if run.origin else "")
        ),
        files=files,
        sha256={name: sha256_of(folder / name) for name in files.values()} if folder else {},
    )
