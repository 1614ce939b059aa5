"""What one fine-tuning step costs: seconds, peak memory, and a 5-shot training's total, on random weights.

    python Testing/benchmarks/tuning_step.py [--architectures sam_vit_b,sam_vit_h] [--steps 3] [--device cpu|cuda]

Each method runs in a process of its own, so that its memory belongs to it alone; a step is one picture with two objects
and two rounds, the first step does not count, and steps are medians. The total is that of the recipe of finetune-SAM's
five slices: 5 slices, each shown 100 times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ARCHITECTURES = ("sam_vit_b",)
METHODS = [(kind, scope) for kind in ("lora", "adapter", "vanilla") for scope in ("decoder", "encoder+decoder")]
SHOWN = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, metavar=("ARCHITECTURE", "METHOD", "SCOPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.steps, arguments.device)))
        return
    print("| network | trained | parameters | seconds a step | peak memory | 5 shots |\n|---|---|---|---|---|---|")
    for architecture in arguments.architectures.split(","):
        for kind, scope in METHODS:
            command = [sys.executable, str(Path(__file__)), "--steps", str(arguments.steps), "--device",
                       arguments.device, "--one", architecture, kind, scope]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {architecture} | {kind}, {scope} | failed: {done.stderr.strip().splitlines()[-1]} | | | |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            total = f"{found['step_s'] * SHOWN / 60:.0f} min"
            print(f"| {architecture} | {kind}, {scope} | {found['parameters'] / 1e6:.2f} M | {found['step_s']:.2f} | "
                  f"{found['peak_gib']:.1f} GiB | {total} |", flush=True)  # fmt: skip


def measure(architecture: str, kind: str, scope: str, steps: int, device: str) -> dict:
    """Median seconds a step, trained parameters and peak memory of this process or its graphics card."""
    import torch
    from measure import peak_mib, random_sam

    from SAMFineTuneLib.cases.case_slices import LabelledSlice
    from SAMFineTuneLib.models.adapters.tuning import attach, trainable
    from SAMFineTuneLib.models.adapters.tuning_method import Method
    from SAMFineTuneLib.models.formats.recognise_checkpoint import build_network
    from SAMFineTuneLib.models.spec import ModelSpec
    from SAMFineTuneLib.training.network_tuning import NetworkTuning, tune
    from SAMFineTuneLib.training.training_items import Items
    from SAMFineTuneLib.training.training_settings import TrainingSettings

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    spec = ModelSpec("random", "Random weights", architecture)
    method = Method(kind, scope)
    settings = TrainingSettings(method=method, heads=("promptable",), steps=steps + 1, batch=1, small_base=False)
    classes = np.zeros((512, 512), np.uint8)
    classes[100:200, 150:260], classes[300:420, 80:200] = 1, 2
    slices = [LabelledSlice(rng.integers(0, 255, classes.shape).astype(np.uint8), classes, None) for _ in range(5)]
    state = random_sam(architecture).state_dict()
    network = build_network(state)[1]
    network.load_state_dict(state, assign=True)
    network = attach(network, spec, settings.method, 0)
    ends = []
    tune(NetworkTuning(network, spec, settings, Items(slices, [], spec, settings), torch.device(device),
                       report=lambda history: ends.append(time.perf_counter())))  # fmt: skip
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.startswith("cuda") else peak_mib() / 1024
    count = sum(tensor.numel() for tensor in trainable(network).values())
    return {"step_s": statistics.median(np.diff(ends)), "parameters": count, "peak_gib": peak}


if __name__ == "__main__":
    main()
