"""One measurement in a process of its own, so that memory and start-up belong to it alone.

    python measure.py model FOLDER ENGINE ROUNDS     ENGINE: segment-anything, torch or onnx
    python measure.py command ARGUMENT...            one run of `samfinetune` with these arguments

Prints one JSON object as its last line. Seconds are medians of the rounds; memory is the process's peak in MiB.
Every runtime uses as many threads as it takes by itself: one a core.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BOXES = 16
VITS = {  # width, depth, heads, blocks that attend to the whole picture
    "sam_vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}


def main() -> None:
    kind, *rest = sys.argv[1:]
    if kind == "model":
        folder, engine, rounds = rest
        result = measure_model(Path(folder), engine, int(rounds))
    else:
        result = measure_command(rest)
    print(json.dumps(result | {"peak_mib": round(peak_mib())}))


def measure_model(folder: Path, engine: str, rounds: int) -> dict:
    """Seconds to load, to encode one picture, to decode one point and to decode a batch of boxes."""
    started = time.perf_counter()
    opened = Reference(folder) if engine == "segment-anything" else _library(folder, engine)
    loaded = time.perf_counter() - started
    spec = opened.spec
    random = np.random.default_rng(0)
    image = random.normal(size=(1, spec.channels, spec.input_size, spec.input_size)).astype(np.float32)
    embedding = opened.encode(image)
    middle = spec.input_size / 2
    point = np.float32([[[middle, middle], [0, 0]]]), np.float32([[1, -1]])
    corners = random.uniform(0, middle, (BOXES, 2, 2)).astype(np.float32) + np.float32([[0, 0], [middle, middle]])
    boxes = corners, np.tile(np.float32([2, 3]), (BOXES, 1))

    def decode(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        size = spec.low_res_size
        mask = np.zeros((len(coords), 1, size, size), np.float32)
        return opened.decode(embedding, coords, labels, mask, np.zeros(len(coords), np.float32))[0]

    return {
        "load_s": loaded,
        "encode_s": median_seconds(lambda: opened.encode(image), rounds),
        "decode_point_s": median_seconds(lambda: decode(*point), 5 * rounds),
        f"decode_{BOXES}_boxes_s": median_seconds(lambda: decode(*boxes), rounds),
        "logits": decode(*point)[0, 0, ::16, ::16].astype(float).round(4).tolist(),  # to see that all answer alike
    }


def median_seconds(action: Callable[[], object], rounds: int) -> float:
    """Median wall time; the first run, which fills caches and allocates, does not count."""
    action()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_command(arguments: list[str]) -> dict:
    """Run `samfinetune` in this process; what it prints is kept out of the result."""
    from SAMFineTuneLib.cli.main import main as samfinetune

    printed = io.StringIO()
    started = time.perf_counter()
    with contextlib.redirect_stdout(printed):
        code = samfinetune(arguments)
    if code:
        raise SystemExit(f"samfinetune {' '.join(arguments)} ended with {code}: {printed.getvalue()}")
    return {"inside_s": time.perf_counter() - started}


def _library(folder: Path, engine: str):
    from SAMFineTuneLib.inference.engine import open_engine
    from SAMFineTuneLib.models.spec import read_model_folder

    return open_engine(read_model_folder(folder), device="cpu", precision="fp32", engine=engine)


class Reference:
    """segment-anything's own modules in PyTorch fp32, called as its SamPredictor calls them."""

    def __init__(self, folder: Path) -> None:
        import torch

        from SAMFineTuneLib.models.spec import read_model_folder

        model = read_model_folder(folder)
        self._torch, self.spec = torch, model.spec
        self._sam = random_sam()
        self._sam.load_state_dict(torch.load(model.file("weights"), weights_only=True))

    def encode(self, image: np.ndarray) -> dict:
        with self._torch.inference_mode():
            return {"image_embeddings": self._sam.image_encoder(self._torch.from_numpy(image))}

    def decode(self, embedding: dict, coords: np.ndarray, labels: np.ndarray, *_: np.ndarray) -> tuple:
        torch, sam = self._torch, self._sam
        coords, labels = torch.from_numpy(coords), torch.from_numpy(labels)
        is_box = bool((labels[0] == 2).any())
        with torch.inference_mode():
            sparse, dense = sam.prompt_encoder(
                points=None if is_box else (coords[:, :1], labels[:, :1]),
                boxes=coords.reshape(-1, 4) if is_box else None,
                masks=None,
            )
            logits, scores = sam.mask_decoder(
                image_embeddings=embedding["image_embeddings"],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
        return logits.numpy(), scores.numpy()


def random_sam(architecture: str = "sam_vit_b"):
    """SAM as segment-anything defines it, with random weights, from its own modules."""
    from functools import partial

    import torch

    from SAMFineTuneLib.models.architectures.segment_anything import modeling

    parts = modeling()
    width, depth, heads, global_blocks = VITS[architecture]
    torch.manual_seed(0)
    sam = parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=1024,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=heads,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=global_blocks,
            window_size=14,
            out_chans=256,
        ),
        prompt_encoder=parts.PromptEncoder(256, (64, 64), (1024, 1024), 16),
        mask_decoder=parts.MaskDecoder(
            transformer_dim=256,
            transformer=parts.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        ),
    )
    return sam.eval()


def peak_mib() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss also counts what the parent had before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20  # macOS counts bytes


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
