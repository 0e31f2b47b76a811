"""Pictures per second and core: our two ways from a JPEG file to pixels, and the plain way with Pillow.

    OMP_NUM_THREADS=1 python benchmarks/data_path.py [--photographs FOLDER] [--seconds 0.5]

The files are 640 x 480 JPEGs of quality 90 cut from real photographs (by default the two that come with scikit-learn).
All ways take turns in one run, so a busy machine slows all of them; of each the median round counts. "Plain" is what
one writes without a library: ``Image.open``, ``convert("RGB")``, bicubic ``resize``, and torchvision's ``ToTensor``
and ``Normalize`` written out. The fast way ends with bytes, which the device normalises.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightbridge.config.model import CLIP_MEAN, CLIP_STD, ImageSettings
from sightbridge.images import fast
from sightbridge.images.fast import FastTransform
from sightbridge.images.transforms import TrainTransform

WIDTH, HEIGHT = 640, 480
FILES = 16
ROUNDS = 7
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs to cut the files from")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = make_files(arguments.photographs)
    size = sum(map(len, files)) / len(files) / 1000
    print(f"{len(files)} JPEGs of {WIDTH} x {HEIGHT} pixels, {size:.0f} KB on average; one core of {processor_name()};")
    print(f"Pillow {Image.__version__}, torch {torch.__version__}, simplejpeg: {fast.simplejpeg is not None}\n")
    print("| pixels | plain Pillow | exact | fast | fast, no simplejpeg | random crops: exact | fast |")
    print("|---|---|---|---|---|---|---|")
    for side in (224, 336):
        rates = measure(ways(side), files, arguments.seconds)
        plain = rates["plain"]
        cells = [f"{rate:.0f}/s ({rate / plain:.2f} x)" for rate in rates.values()]
        print(f"| {side} | {' | '.join(cells)} |", flush=True)


def make_files(folder: Path | None) -> list[bytes]:
    """Encode ``FILES`` views of the photographs, each of another part of one."""
    if folder is None:
        from sklearn.datasets import load_sample_images

        photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    else:
        photographs = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    files = []
    for number in range(FILES):
        photograph = photographs[number % len(photographs)]
        share = 1 - 0.4 * number / FILES
        box = (0, 0, int(photograph.width * share), int(photograph.height * share))
        file = io.BytesIO()
        photograph.crop(box).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def ways(side: int) -> dict[str, Callable[[bytes, int], Tensor]]:
    """The ways by name: ``(file, number) -> pixels``."""
    whole = ImageSettings(size=side)
    cropped = ImageSettings(size=side, augment="crop_flip")

    def plain(file: bytes, _: int) -> Tensor:
        image = Image.open(io.BytesIO(file)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - MEAN) / STD

    def without_simplejpeg(file: bytes, number: int) -> Tensor:
        kept, fast.simplejpeg = fast.simplejpeg, None
        try:
            return quick.open(file, epoch=number, record_id="")
        finally:
            fast.simplejpeg = kept

    exact, quick = TrainTransform(whole), FastTransform(whole)
    exact_crops, quick_crops = TrainTransform(cropped), FastTransform(cropped)
    return {
        "plain": plain,
        "exact": lambda file, number: exact.open(file, epoch=number, record_id=""),
        "fast": lambda file, number: quick.open(file, epoch=number, record_id=""),
        "fast, no simplejpeg": without_simplejpeg,
        "exact crops": lambda file, number: exact_crops.open(file, epoch=number, record_id=""),
        "fast crops": lambda file, number: quick_crops.open(file, epoch=number, record_id=""),
    }


def measure(
    functions: dict[str, Callable[[bytes, int], Tensor]], files: list[bytes], seconds: float
) -> dict[str, float]:
    """Pictures per second of every way: the median of ``ROUNDS`` rounds, in which each has its turn."""
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            function(files[0], 0)
            start, count = time.process_time(), 0  # of this process: what others take of the core is not counted
            while time.process_time() - start < seconds:
                function(files[count % len(files)], count)
                count += 1
            rates[name].append(count / (time.process_time() - start))
    return {name: statistics.median(rounds) for name, rounds in rates.items()}


def processor_name() -> str:
    """Name of the processor, as Linux tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
