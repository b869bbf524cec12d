"""What small models of families unlike Qwen's learn by GRPO where only the medium tells the right answer, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/families_learn.py --seeds 0 1 2

A picture is red or blue, a noise low or high (L or H). Each model is one of `mmrl tiny` with random weights, tower
included, and all of it is trained. A cold start teaches the words: pictures by answers drawn by lot, which are right by
chance, sounds by a listener who takes three of five low ones for high, so that H is always likelier. GRPO then has
nothing but the reward. Prints held-out rewards after either. A run that was interrupted is resumed.
"""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from runs import evaluation, train

RECIPE = Path(__file__).with_suffix(".yaml")
REWARD = Path(__file__).with_name("families_learn_reward.py")
COLOURS = {"red": 0, "blue": 2}
BANDS_HZ = {"L": ((100, 100), (600, 1200)), "H": ((1800, 2600), (7500, 7500))}
"""Answer -> ranges of the lowest and the highest frequency of its noise."""
RIGHT = {"L": 0.4, "H": 1.0}
"""Answer -> share of its sounds that the cold start calls so."""
ROWS = {"train": 256, "held_out": 64}
RATE_HZ = 16000
FAMILIES = {
    "smolvlm": "tiles",
    "gemma3": "attention both ways in a picture",
    "lfm2_vl": "layers of convolutions",
    "gemma4": "sound",
}
"""Kind of tiny model -> what sets it apart."""
HEARD = ("gemma4",)


def write_rows(folder: Path, medium: str) -> None:
    """Write `train.jsonl` and `held_out.jsonl` with their pictures or sounds, the same ones each time."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    names = list(COLOURS if medium == "image" else BANDS_HZ)
    for split, count in ROWS.items():
        rows = []
        for place in range(count):
            answer = names[place % len(names)]
            if medium == "image":
                guess = names[int(numbers.integers(len(names)))]
            else:
                guess = answer if numbers.uniform() < RIGHT[answer] else "H"
            path = folder / f"{split}-{place}.{'png' if medium == 'image' else 'wav'}"
            (write_picture if medium == "image" else write_noise)(path, answer, numbers)
            rows.append({medium: path.name, "answer": answer, "guess": guess})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_picture(path: Path, colour: str, numbers: np.random.Generator) -> None:
    """Noise of any brightness in which one channel is stronger than the others."""
    width, height = numbers.integers(56, 113, 2)
    pixels = numbers.normal(numbers.uniform(60, 120), 30, (height, width, 3))
    pixels[..., COLOURS[colour]] += 80
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_noise(path: Path, band: str, numbers: np.random.Generator) -> None:
    """A quarter of a second of noise in a band, of any loudness; a pure tone differs in too few features."""
    lowest, highest = (numbers.uniform(*edge) for edge in BANDS_HZ[band])
    frequencies = np.fft.rfftfreq(RATE_HZ // 4, 1 / RATE_HZ)
    spectrum = np.fft.rfft(numbers.normal(0, 1, RATE_HZ // 4)) * ((frequencies >= lowest) & (frequencies <= highest))
    samples = np.fft.irfft(spectrum, RATE_HZ // 4)
    samples *= numbers.uniform(0.05, 0.2) / samples.std()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def settings(kind: str, seed: int, data: Path) -> list[str]:
    """What `mmrl train` is told beside the recipe."""
    given = [f"model.build.kind={kind}", f"seed={seed}", f"data.train.path={data / 'train.jsonl'}"]
    given.append(f"data.held_out.path={data / 'held_out.jsonl'}")
    given.append(f"rewards.0.name={REWARD}:right")
    if kind in HEARD:
        given += ["prompt.images=[]", "prompt.audios=['{audio}']", "prompt.text=L or H?"]
        given += ["stages.0.steps=400", "stages.0.optimizer.warmup_steps=20"]
        given += ["stages.0.optimizer.lr=1e-3"]  # at 3e-3 it knows the words and never hears
        given += ["stages.1.steps=80", "stages.1.prompts_per_step=16", "stages.1.optimizer.lr=7e-4"]
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/families_learn"))
    parser.add_argument("--kinds", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more settings of the recipe")
    arguments = parser.parse_args()
    titles = ("kind", "with", "seed", "cold start", "GRPO")
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for kind in arguments.kinds:
        medium = "audio" if kind in HEARD else "image"
        data = arguments.output / medium
        if not (data / "held_out.jsonl").is_file():
            write_rows(data, medium)
        for seed in arguments.seeds:
            given = [*settings(kind, seed, data), *arguments.set]
            records = train(str(RECIPE), arguments.output / f"{kind}-seed{seed}", given)
            evaluated = [evaluation(records, label) for label in ("after sft", "after grpo")]
            rewards = [f"{record['greedy/reward/right']:.3f}" for record in evaluated]
            lines.append("| " + " | ".join([f"`{kind}`", FAMILIES[kind], str(seed), *rewards]) + " |")
            print(lines[-1], flush=True)
    table = "\n".join(lines)
    (arguments.output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
