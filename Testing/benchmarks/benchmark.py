"""Speed and memory of the library beside segment-anything, on this machine, in one run.

    python Testing/benchmarks/benchmark.py                        prints the tables
    python Testing/benchmarks/benchmark.py -o figures.json        and writes figures.json and figures.md

SAM ViT-B with random weights (the same in all engines) and the bundled model are measured in turn, each in a
process of its own; then `samfinetune segment` from a cold start on a phantom. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from measure import BOXES, random_sam  # noqa: E402

from SAMFineTuneLib.files import atomic_write  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402

ENGINES = {
    "segment-anything": "segment-anything, PyTorch fp32",
    "torch": "SAMFineTune, PyTorch fp32",
    "onnx": "SAMFineTune, ONNX Runtime fp32",
}
FIGURES = (
    ("load_s", "load (s)"),
    ("encode_s", "encode a slice (s)"),
    ("decode_point_s", "one point (s)"),
    (f"decode_{BOXES}_boxes_s", f"{BOXES} boxes (s)"),
    ("peak_mib", "peak memory (MiB)"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="JSON file; the tables go beside it with the ending .md")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every measurement (default 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "machine": machine(),
            "sam_vit_b": compare(random_vit_b(Path(folder) / "vit-b"), tuple(ENGINES), args.rounds),
            "compact": compare(Store().get().path, ("torch", "onnx"), 5 * args.rounds),
            "cold start": cold_start(Path(folder), args.rounds),
        }
    text = tables(figures)
    print(text)
    if args.output:
        with atomic_write(args.output) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        with atomic_write(args.output.with_suffix(".md")) as temporary:
            temporary.write_text(text, encoding="utf-8")


def machine() -> dict:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnxruntime", "numpy")},
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def random_vit_b(folder: Path) -> Path:
    """A model folder with SAM ViT-B, random weights, and its ONNX files."""
    import torch

    from SAMFineTuneLib.models.onnx_export import export_model
    from SAMFineTuneLib.models.spec import ModelSpec, read_model_folder, write_spec

    folder.mkdir()
    torch.save(random_sam().state_dict(), folder / "weights.pth")
    write_spec(ModelSpec("vit-b", "SAM ViT-B", "sam_vit_b", files={"weights": "weights.pth"}), folder)
    export_model(read_model_folder(folder), folder)
    return folder


def compare(folder: Path, engines: tuple[str, ...], rounds: int) -> dict:
    """Each engine in turn, twice, so that a busy moment of the machine does not fall on one alone."""
    runs: dict[str, list[dict]] = {engine: [] for engine in engines}
    for _ in range(2):
        for engine in engines:
            runs[engine].append(child("model", str(folder), engine, str(rounds)))
    answers = [np.array(run.pop("logits")) for results in runs.values() for run in results]
    spread = max(float(np.abs(answer - answers[0]).max()) for answer in answers)
    assert spread < 1e-2, f"the engines disagree by up to {spread}"
    return {
        engine: {key: min(result[key] for result in results) for key in results[0]} for engine, results in runs.items()
    }


def cold_start(folder: Path, rounds: int) -> dict:
    """Seconds from starting `samfinetune segment` to the written label map, on a DICOM series of a phantom."""
    from SAMFineTuneLib.images.phantom import body_phantom, write_dicom_series

    volume, labels, names = body_phantom()
    write_dicom_series(volume, folder / "series")
    liver = labels == next(value for value, name in names.items() if name == "liver")
    k = int(liver.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(liver[k])
    box = f"{columns.min()},{rows.min()},{k},{columns.max()},{rows.max()},{k}"
    output = str(folder / "liver.nii.gz")
    command = [str(folder / "series"), "-o", output, "--overwrite", "--space", "ijk", f"--box={box}"]
    found: dict[str, list[dict]] = {"first run": [], "second run": []}
    for number in range(rounds):
        home = str(folder / f"home-{number}")
        for runs in found.values():
            started = time.perf_counter()
            run = child("command", "segment", *command, SAMFINETUNE_HOME=home)
            runs.append({"seconds": time.perf_counter() - started, "peak_mib": run["peak_mib"]})
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }


def child(*arguments: str, **environment: str) -> dict:
    """The result of one measurement."""
    command = [sys.executable, str(Path(__file__).with_name("measure.py")), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def tables(figures: dict) -> str:
    """The figures as Markdown; in brackets the ratio to the first row of the same table."""
    lines = [", ".join(f"{name} {value}" for name, value in figures["machine"].items() if name != "processor")]
    lines = [f"{figures['machine']['processor']}, {lines[0]}", ""]
    for model, title in (("sam_vit_b", "SAM ViT-B, random weights"), ("compact", "bundled model")):
        lines += [f"| {title} | {' | '.join(label for _, label in FIGURES)} |", "|---|" + "---:|" * len(FIGURES)]
        reference = next(iter(figures[model].values()))
        for engine, values in figures[model].items():
            cells = (f"{number(values[key])} ({values[key] / reference[key]:.2f})" for key, _ in FIGURES)
            lines.append(f"| {ENGINES[engine]} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| `samfinetune segment`, one box | whole command (s) | peak memory (MiB) |", "|---|---:|---:|"]
    for name, values in figures["cold start"].items():
        lines.append(f"| {name} | {values['seconds']:.3g} | {values['peak_mib']:.0f} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
