"""Pre-train the compact model on synthetic pictures: interactive, resumable, bounded by minutes or by steps.

Each step renders a batch of pictures, encodes each once, and plays a short annotation session on four of its
objects: a box or one point, at times with several points more, then one to four corrections where the mask is wrong,
with the previous logits fed back 60 % of the time (after MedicoSAM, Archit 2025). On a graphics card pictures are drawn
there, too. Everything random in step `n` follows from (seed, n) alone, so that a resumed run repeats the uninterrupted
one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, sha256_of
from SAMFineTuneLib.inference.mask_candidates import JOINED
from SAMFineTuneLib.models.architectures import compact
from SAMFineTuneLib.models.formats.checkpoint import load_own_checkpoint
from SAMFineTuneLib.models.spec import ModelSpec, read_model_folder, write_spec
from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.simulation.simulated_annotator import correct, first_prompts, more_points, offer_neighbour_masks
from SAMFineTuneLib.training.new_model import owning_model
from SAMFineTuneLib.training.synthetic_pictures import GENERATOR_VERSION, synthetic_pictures
from SAMFineTuneLib.training.synthetic_scanner import SIZE
from SAMFineTuneLib.training.training_loop import Stopped, interruptible, stopping

OBJECTS = 4
ROUNDS = (2, 2, 2, 2, 2, 2, 3, 3, 3, 5)
"""Answers of a session, one of these; most are short, because decoding costs more than encoding here."""
SEVERAL = 0.3
"""Part of the steps whose sessions begin with more points, up to MOST_POINTS, beside the box or the first point."""
MOST_POINTS = 10
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.02
WARM_UP = 0.03
EMA_DECAY = 0.999
DRAWN_PER_GIB = 128
"""Pictures that a graphics card draws in one go, for each GiB of its memory: about a sixth of it."""
CHECKPOINT_SECONDS = 180
CHECKPOINT_NAME = "checkpoint.pt"


# ---------------------------------------------------------------- pictures and first prompts


def _boxes(rng: Random, masks: Tensor) -> Tensor:
    """(n, 4) x0, y0, x1, y1 of masks (n, 128, 128), tight or each side moved by up to a tenth of the box."""
    line, count = torch.arange(SIZE, device=masks.device), len(masks)
    ends = []
    for there in (masks.any(1), masks.any(2)):  # columns, rows
        ends.append((torch.where(there, line, SIZE - 1).amin(1), torch.where(there, line, 0).amax(1)))
    box = torch.stack([end[side] for side in (0, 1) for end in ends], 1).float()
    sides = (box[:, 2:] - box[:, :2] + 1).repeat(1, 2)
    moved = rng.uniform(-0.1, 0.1, count, 4) * sides
    slack = torch.where(rng.chance(0.6, count, 1), moved, rng.uniform(-0.5, 0.5, count, 4))
    return (box + slack).clamp(0, SIZE - 1)


def _stretched(image: Tensor, shape: Tensor) -> Tensor:
    """`preprocess.stretched` of each picture (n, 128, 128), without the padding beyond its `shape` (n, 2)."""
    # The padding is filled with the picture's own pixels, which leaves the percentiles about as they are.
    rows, columns = (torch.arange(SIZE, device=image.device) % shape[:, axis, None] for axis in (0, 1))
    filled = image.gather(1, rows[:, :, None].expand(-1, -1, SIZE)).gather(2, columns[:, None].expand(-1, SIZE, -1))
    order = filled.flatten(1).sort(dim=1).values
    low, high = (order[:, round(share * (order.shape[1] - 1)), None, None] for share in (0.005, 0.995))
    return ((image - low) * (255 / (high - low).clamp(min=1))).clamp(0, 255)


class SyntheticBatches(torch.utils.data.Dataset):
    """Batch `n` of a run: a pure function of (seed, n) on one kind of device.

    `together` batches are drawn at once: a graphics card needs thousands of pictures to be busy.
    """

    def __init__(self, seed: int, batch_size: int, device: torch.device | str = "cpu", together: int = 1) -> None:
        self.seed, self.batch_size, self.device, self.together = seed, batch_size, device, together
        self._block, self._drawn = -1, {}

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """`image` (B, 1, 128, 128) normalised; of four objects each `target` (B, 4, 64, 64) 0..1, `box`, `point`, and
        `beyond` (B, 4), the cells of it that lie outside the picture."""
        block, number = divmod(step, self.together)
        if block != self._block:
            self._block, self._drawn = block, self._draw(block)
        own = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return {name: value[own] for name, value in self._drawn.items()}

    def _draw(self, block: int) -> dict[str, Tensor]:
        pictures = synthetic_pictures((self.seed, block), self.together * self.batch_size, OBJECTS, self.device)
        rng = Random((self.seed, block, 1), self.device)
        line = torch.arange(SIZE, device=rng.device)
        inside = (line[:, None] < pictures.shape[:, 0, None, None]) & (line < pictures.shape[:, 1, None, None])
        image = (_stretched(pictures.image, pictures.shape) - compact.PIXEL_MEAN) / compact.PIXEL_STD
        boxes = _boxes(rng, pictures.masks.flatten(0, 1))
        return {
            "image": (image * inside)[:, None],  # padding is 0 after normalisation
            "target": F.avg_pool2d(pictures.masks.float(), 2),
            "box": boxes.reshape(-1, OBJECTS, 4),
            "point": pictures.points,
            "beyond": pictures.beyond / 4,
        }


def _batches(dataset: SyntheticBatches, start: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches from step `start` on, rendered ahead in `workers` other processes (0: in this one)."""
    extra = {"multiprocessing_context": "spawn", "prefetch_factor": 6} if workers else {}
    order = range(start, len(dataset))
    return iter(torch.utils.data.DataLoader(dataset, None, sampler=order, num_workers=workers, **extra))


# ---------------------------------------------------------------- loss


def _candidate_losses(logits: Tensor, target: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, 4, 64, 64) against target (n, 64, 64) -> Dice + cross-entropy (n, 4) and real IoU (n, 4).

    `beyond` (n,) cells of the object lie outside the picture and count in the IoU: an answer cut off by the view is not
    as good as the one of a wider view, and predicted IoU can be compared between views.
    """
    target = target[:, None]
    probability = logits.sigmoid()
    area = target.sum((2, 3))
    overlap = (probability * target).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + area + 1)
    # Divided by the object's size and not the picture's, or small objects would not count.
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none").sum((2, 3))
    with torch.no_grad():
        answer, truth = logits > 0, target > 0.5
        union = (answer | truth).sum((2, 3)) + beyond[:, None]
        iou = (answer & truth).sum((2, 3)) / union.clamp(min=1)
    return dice + 0.5 * cross_entropy / (2 * area).clamp(min=256), iou


def _session_loss(
    logits: Tensor, predicted_iou: Tensor, target: Tensor, ambiguous: Tensor, beyond: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of one round and the real IoU of the four candidates.

    One ambiguous point (`ambiguous` (n,)): the best of candidates 1..3 learns, the others and candidate 0 a little.
    Else: candidate 0 learns, the best of the others a little, so that comparing all predicted IoU makes sense.
    """
    losses, iou = _candidate_losses(logits, target, beyond)
    best = losses[:, 1:].min(dim=1).values
    single = losses[:, 0]
    several = best + 0.05 * losses[:, 1:].mean(1) + 0.3 * single
    mask_loss = torch.where(ambiguous, several, single + 0.2 * best).mean()
    return mask_loss + F.mse_loss(predicted_iou, iou), iou


def _joined(logits: Tensor, predicted_iou: Tensor) -> Tensor:
    """`inference.candidates.joined` of n answers (n, 4, 64, 64), (n, 4) -> logits (n, 64, 64)."""
    scores, trusted = predicted_iou.topk(JOINED, dim=1)
    inside = logits.gather(1, trusted[:, :, None, None].expand(-1, -1, *logits.shape[2:])).sigmoid().mean(1)
    score = scores.mean(1)
    threshold = (score / (1 + score)).clamp(1e-6, 0.5)
    return inside.clamp(1e-6, 1 - 1e-6).logit() - threshold.logit()[:, None, None]


def _mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the hardware has them: a third less time; weights and losses stay in 32 bits."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def _rounds(model: compact.CompactModel, batch: dict[str, Tensor], rng: Random) -> tuple[Tensor, Tensor]:
    """Play one batch: first prompts and a few corrections. -> mean loss, mean real IoU of the first answers."""
    with _mixed_precision(batch["image"].device):
        encoded = model.encode(batch["image"])
    embedding = {name: value.repeat_interleave(OBJECTS, 0) for name, value in encoded.items()}
    target, box, point, beyond = (batch[name].flatten(0, 1) for name in ("target", "box", "point", "beyond"))
    by_box = rng.chance(0.5, len(target))
    beyond = torch.where(by_box, 0, beyond)  # a box is drawn in the view and asks for what is there
    prompts = offer_neighbour_masks(first_prompts(box, point, by_box), target, by_box, rng)
    rounds = int(rng.shared.choice(ROUNDS))
    ambiguous = ~by_box & (prompts.has_logits == 0)
    if rng.shared.random() < SEVERAL:
        prompts = more_points(prompts, target, int(rng.shared.integers(1, MOST_POINTS + 1)), rng)
        ambiguous = torch.zeros_like(ambiguous)
    total, first_iou = 0.0, None
    for number in range(rounds):
        with _mixed_precision(target.device):
            answer = model.decode(embedding, prompts.coords, prompts.labels, prompts.logits, prompts.has_logits)
        logits, predicted = (values.float() for values in answer)
        loss, iou = _session_loss(logits, predicted, target, ambiguous, beyond)
        total = total + loss
        choice = torch.where(ambiguous, predicted[:, 1:].argmax(1) + 1, 0)
        if number == 0:
            first_iou = iou.gather(1, choice[:, None]).mean()
        if number < rounds - 1:
            with torch.no_grad():
                chosen = logits.gather(1, choice[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
                as_predicted = rng.chance(0.5, len(target)) & ~ambiguous
                chosen = torch.where(as_predicted[:, None, None], _joined(logits, predicted), chosen)
            prompts = correct(prompts, chosen, target, rng)
            ambiguous = torch.zeros_like(ambiguous)
        if number == 0:
            # Decoding costs more than encoding here: every second object is enough to learn corrections from.
            part = rng.uniform(0, 1, len(target)).argsort()[: len(target) // 2]
            prompts, target, ambiguous, beyond = prompts.subset(part), target[part], ambiguous[part], beyond[part]
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = compact.build_compact()
    origin = _start_from(model, start) if start else ""
    model = model.to(device).train()
    average = deepcopy(model).eval().requires_grad_(False)
    return Run(model, average, _optimizer(model), seed, batch_size, origin=origin)


def _start_from(model: compact.CompactModel, folder: Path) -> str:
    """Give `model` the weights of an earlier compact model. -> how that one was made.

    Transformer blocks that the earlier one lacks begin as the identity.
    """
    from safetensors.torch import load_file

    earlier = read_model_folder(folder)
    spec = earlier.spec
    if spec.architecture != "compact":
        raise UserError(f"Pre-training starts from compact models; {spec.id} is of architecture {spec.architecture}.")
    weights = load_file(earlier.file("weights"))
    blocks = model.image_encoder.blocks
    for number, block in enumerate(blocks):
        if f"image_encoder.blocks.{number}.attn.qkv.weight" not in weights:
            for layer in (block.local, block.attn.proj, block.mlp.lin2):
                layer.weight.data.zero_()
                layer.bias.data.zero_()
            own = block.state_dict(prefix=f"image_encoder.blocks.{number}.")
            weights.update(own)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"The weights of {spec.id} do not fit the compact model; start from another one.") from error
    return spec.source


def load_run(path: Path, device: torch.device | str = "cpu") -> Run:
    """The run a checkpoint was written by; a damaged or foreign file is refused."""
    try:
        state = load_own_checkpoint(path, device)
        run = _new_run(state["seed"], state["batch_size"], torch.device(device))
        run.model.load_state_dict(state["model"])
        run.average.load_state_dict(state["average"])
        run.optimizer.load_state_dict(state["optimizer"])
    except UserError:
        raise
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
    rng = Random((run.seed, run.step, 2), batch["image"].device)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    loss, iou = _rounds(run.model, batch, rng)
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    if torch.isfinite(norm):  # a picture that overflows bfloat16 must not end a long run
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
    look: Callable[[], None],
) -> None:
    """Train until the budget is used; write the checkpoint every few minutes and at the end, also when stopped."""
    device = next(run.model.parameters()).device
    if device.type == "cpu":
        batches = _batches(SyntheticBatches(run.seed, run.batch_size), run.step, workers)
    else:
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        together = max(int(DRAWN_PER_GIB * memory) // run.batch_size, 1)
        batches = _batches(SyntheticBatches(run.seed, run.batch_size, device, together), run.step, 0)
    interruptible(run.model, look)
    saved = time.monotonic()
    try:
        while (fraction := _fraction(run, minutes, steps)) < 1:
            look()
            started = time.monotonic()
            rate = learning_rate(fraction)
            loss, iou = _train_step(run, next(batches), rate)
            run.elapsed += time.monotonic() - started
            if progress:
                progress({
                    "step": run.step, "loss": loss, "iou": iou, "rate": rate, "fraction": fraction,
                    "pictures": run.step * run.batch_size, "minutes": run.elapsed / 60,
                })  # fmt: skip
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save_run(run, checkpoint)
                saved = time.monotonic()
    except Stopped:  # nothing of a step is kept before all of it is
        _save_run(run, checkpoint)
        raise
    _save_run(run, checkpoint)


def pretrain_synthetic(
    output_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    resume: bool = False,
    start: Path | None = None,
    progress: Callable[[dict], None] | None = None,
    device: str = "auto",
    workers: int = 1,
    cancel: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the compact model and write a complete model folder. -> the folder.

    The budget is `minutes` of wall clock, or `steps`, or whichever ends first. Only a run bounded by `steps` alone is
    reproducible bit by bit, since the learning rate follows the used part of the budget. `resume` goes on from the
    checkpoint in the folder, if there is one; else the weights of the model folder `start` are the first, or random
    ones. `progress` gets a dict after every step. A step has `batch_size` pictures, 8 on a processor and 256 on a
    graphics card. On a processor, `workers` processes render pictures ahead; with any, the caller's script needs the
    usual `if __name__ == "__main__"` guard. When `cancel` says so, Stopped is raised, and `resume` goes on later.
    UserError while another process trains into the folder.
    """
    if not minutes and not steps:
        raise UserError("Pre-training needs a number of minutes or of steps.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = batch_size or (8 if torch.device(device).type == "cpu" else 256)
    output_folder = Path(output_folder).expanduser()
    checkpoint = output_folder / CHECKPOINT_NAME
    with owning_model(output_folder, checkpoint, resume):
        if resume and checkpoint.exists():
            run = load_run(checkpoint, device)
        else:
            run = _new_run(seed, batch_size, torch.device(device), start)
        _train(run, checkpoint, minutes, steps, progress, workers, stopping(cancel))
        return write_model_folder(run, output_folder)



# ---------------------------------------------------------------- the finished folder


def write_model_folder(run: Run, folder: Path) -> Path:
    """Write `model.safetensors` (averaged weights, half precision), both ONNX graphs over it, and `model.json`."""
    from safetensors.torch import save_file

    from SAMFineTuneLib.models.onnx_export import export_onnx

    folder = Path(folder)
    half = {name: value.detach().cpu().half().contiguous() for name, value in run.average.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(half, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    # The graphs are exported from the rounded weights, so that both engines give the same answer.
    export_onnx(compact.build_compact(half), _spec(run), folder, weights=folder / "model.safetensors")
    write_spec(_spec(run, folder), folder)
    return folder


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
