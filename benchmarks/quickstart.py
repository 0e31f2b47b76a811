"""Every combination of the quickstart, one after the other: accuracy, baselines, seconds. Prints a Markdown table.

python benchmarks/quickstart.py [--data scenes digits] [--out runs/benchmark]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch
from rich.console import Console

from sightbridge.quickstart.run import QuickstartSettings, run_quickstart


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", nargs="+", default=["scenes", "digits"], choices=["scenes", "digits"])
    arguments.add_argument("--connectors", nargs="+", default=["mlp", "linear", "qformer"])
    arguments.add_argument("--language-models", nargs="+", default=["decoder", "encoder-decoder"])
    arguments.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    chosen = arguments.parse_args()

    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    columns = ["data", "language model", "connector", "accuracy", "new combinations", "without picture"]
    columns += ["trained weights", "seconds"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for data in chosen.data:
        for language_model in chosen.language_models:
            for connector in chosen.connectors:
                settings = QuickstartSettings(
                    connector=connector,
                    language_model=language_model,
                    data="digits" if data == "digits" else "shapes",
                    folder=chosen.out / f"{data}-{language_model}-{connector}",
                    overwrite=True,
                )
                results = run_quickstart(settings, Console(quiet=True))
                seconds = results["seconds"]
                print(
                    f"| {data} | {language_model} | {connector} | {results['accuracy']['mean']:.3f} "
                    f"| {results['accuracy_new_combinations']:.3f} | {results['text_only_baseline']['mean']:.3f} "
                    f"| {results['trained_parameters']:,} "
                    f"| {sum(seconds.values()):.0f} (training {seconds['training']:.0f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
