"""Pre-train the compact model on synthetic pictures: interactive, resumable, bounded by minutes or by steps.

Each step renders a batch of pictures, encodes each once, and plays a short annotation session on four objects of each:
a box or one point, at times with several more points, then one to four corrections where the mask is wrong, with the
previous logits fed back 60 % of the time (after MedicoSAM, Archit 2025). A graphics card also draws the pictures.
Everything random in step n follows from (seed, n) alone, so that a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.inference.mask_candidates import JOINED
from SAMFineTuneLib.models.architectures import compact
from SAMFineTuneLib.models.spec import read_model_folder, write_spec
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.simulation.simulated_annotator import correct, first_prompts, more_points, offer_neighbour_masks
from SAMFineTuneLib.training.device_memory import device_of, mixed_precision
from SAMFineTuneLib.training.losses import real_iou
from SAMFineTuneLib.training.pretraining import (
    WEIGHTS,
    AveragedTraining,
    PretrainingProgress,
    begun,
    owning_model,
    write_tensors,
)
from SAMFineTuneLib.training.synthetic_batches import OBJECTS, batches
from SAMFineTuneLib.training.synthetic_pictures import GENERATOR_VERSION
from SAMFineTuneLib.training.training_loop import Schedule

ROUNDS = (2, 2, 2, 2, 2, 2, 3, 3, 3, 5)
"""Answers of a session, drawn from these; most are short, because decoding costs more than encoding here."""
SEVERAL = 0.3
"""Part of the steps whose sessions begin with up to MOST_POINTS points beside the box or the first point."""
MOST_POINTS = 10
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.02
WARM_UP = 0.03
EMA_DECAY = 0.999
CHECKPOINT_NAME = "checkpoint.pt"
_BATCH = "number of pictures a step"


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
    return dice + 0.5 * cross_entropy / (2 * area).clamp(min=256), real_iou(logits > 0, target, beyond)


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
    """`inference.mask_candidates.joined` of n answers (n, 4, 64, 64), (n, 4) -> logits (n, 64, 64)."""
    scores, trusted = predicted_iou.topk(JOINED, dim=1)
    inside = logits.gather(1, trusted[:, :, None, None].expand(-1, -1, *logits.shape[2:])).sigmoid().mean(1)
    score = scores.mean(1)
    threshold = (score / (1 + score)).clamp(1e-6, 0.5)
    return inside.clamp(1e-6, 1 - 1e-6).logit() - threshold.logit()[:, None, None]


def _rounds(model: compact.CompactModel, batch: dict[str, Tensor], rng: Random) -> tuple[Tensor, Tensor]:
    """Play one batch: first prompts and a few corrections.

    Returns:
        The mean loss, and the mean real IoU of the first answers.
    """
    with mixed_precision(batch["image"].device, on_processor=True):
        encoded = model.encode(batch["image"])
    embedding = {name: value.repeat_interleave(OBJECTS, 0) for name, value in encoded.items()}
    target, box, point, beyond = (batch[name].flatten(0, 1) for name in ("target", "box", "point", "beyond"))
    by_box = rng.chance(0.5, len(target))
    beyond = torch.where(by_box, 0, beyond)  # a box is drawn in the view and asks for what is visible
    prompts = offer_neighbour_masks(first_prompts(box, point, by_box), target, by_box, rng)
    rounds = int(rng.shared.choice(ROUNDS))
    ambiguous = ~by_box & (prompts.has_logits == 0)
    if rng.shared.random() < SEVERAL:
        prompts = more_points(prompts, target, int(rng.shared.integers(1, MOST_POINTS + 1)), rng)
        ambiguous = torch.zeros_like(ambiguous)
    total, first_iou = 0.0, None
    for number in range(rounds):
        with mixed_precision(target.device, on_processor=True):
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


def pretrain_synthetic(
    output_folder: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    resume: bool = False,
    start: Path | None = None,
    progress: Callable[[PretrainingProgress], None] | None = None,
    device: str = "auto",
    workers: int = 1,
    cancel: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the compact model and write a complete model folder.

    Args:
        output_folder: Folder of the new model.
        minutes: Wall-clock time after which the training ends; such a run is not repeatable to the bit.
        steps: Steps after which it ends; with `minutes`, whichever comes first.
        seed: Start of all random numbers.
        batch_size: Pictures of a step; 8 on a processor and 256 on a graphics card, or as in the checkpoint.
        resume: Whether to continue from the folder's checkpoint, if there is one.
        start: Folder of a compact model whose weights are the first ones; random ones without.
        progress: Called after every step; it measures `loss` and `iou`, that of the first answers.
        device: A PyTorch device, or "auto".
        workers: On a processor, processes that render pictures ahead. With any, the caller's script needs the usual
            `if __name__ == "__main__"` guard.
        cancel: Called many times a second; True stops the training.

    Returns:
        The folder.

    Raises:
        Stopped: When `cancel` returns True; `resume` continues later.
        UserError: For a folder that cannot be used, and while another process trains into it.
    """
    if not minutes and not steps:
        raise UserError("Pre-training needs a number of minutes or of steps.")
    place = torch.device(device_of(device))
    output_folder = Path(output_folder).expanduser()
    checkpoint = output_folder / CHECKPOINT_NAME
    with owning_model(checkpoint, resume):
        about = begun(checkpoint, resume)
        batch = batch_size or about.get(_BATCH) or (8 if place.type == "cpu" else 256)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = compact.build_compact()
        origin = about.get("origin", "")
        if start and not about:
            origin = _start_from(model, start)
        model.to(place).train()

        def measure(shown: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            loss, iou = _rounds(model, shown, Random((seed, step, 2), place))
            return {"loss": loss, "iou": iou}

        draw = partial(batches, seed, batch, place, workers=workers)
        training = AveragedTraining(model, _optimiser(model), draw, measure, EMA_DECAY, batch)
        about = {"seed": seed, _BATCH: batch, "origin": origin}
        schedule = Schedule(LEARNING_RATE, WARM_UP, steps, minutes)
        average, history = training.run(checkpoint, schedule, about, progress, cancel)
        source = (
            f"trained by samfinetune pretrain --synthetic: generator {GENERATOR_VERSION}, seed {seed}, "
            f"{history.step * batch} pictures in {history.step} steps, {history.seconds / 60:.0f} minutes"
        )
        return write_model_folder(average, source + (f", after: {origin}" if origin else ""), output_folder)


def _optimiser(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases, norms and embeddings."""
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    decayed = [module.weight for module in model.modules() if isinstance(module, layers)]
    known = set(map(id, decayed))
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.98), foreach=True,
    )  # fmt: skip


def _start_from(model: compact.CompactModel, folder: Path) -> str:
    """Give `model` the weights of an earlier compact model and return how that one was made.

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


# ---------------------------------------------------------------- the finished folder


def write_model_folder(average: compact.CompactModel, source: str, folder: Path) -> Path:
    """Write `model.safetensors` (averaged weights, half precision), both ONNX graphs over it, and `model.json`."""
    from SAMFineTuneLib.models.onnx_export import export_onnx

    half = {name: value.detach().cpu().half() for name, value in average.state_dict().items()}
    weights = write_tensors(folder / WEIGHTS, half)
    files = {"weights": weights.name, "encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    # That of any compact model; predicted IoU of new weights has to be calibrated again.
    spec = replace(Store().get("compact").spec, source=source, files=files, sha256={}, calibration={})
    # The graphs are exported from the rounded weights, so that both engines give the same answer.
    export_onnx(compact.build_compact(half), spec, folder, weights=weights)
    write_spec(replace(spec, sha256={name: sha256_of(folder / name) for name in spec.files.values()}), folder)
    return folder
