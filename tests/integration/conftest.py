"""Real architectures with tiny random weights, real files, and plain transformers code to compare with."""

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import textwrap
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.config import load_config
from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics
from mmrl_core.testing import build_tiny
from mmrl_core.types import Prompt
from tests import ranks
from tests.forked import leave_server

CHOICES = ("red", "blue", "dog", "cat", "no", "left")


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """One thread, which makes sums repeatable, and a cache of our own, for this process and those it starts."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)
    os.environ |= {"MMRL_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, surroundings):
    """`tiny_model(kind)` -> folder of a tiny model whose matrices are larger, and that stops at every sixth token.

    At the usual start every token is about equally likely wherever it stands, so that wrong positions or masks would
    hide behind the tolerance; and completions would all run to the limit.
    """
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models")

    def model(kind):
        if not (folder / kind).exists():
            build_tiny(kind, folder / kind)
            weights = load_file(folder / kind / "model.safetensors")
            for name, weight in weights.items():
                if weight.dim() > 1 and "embed" not in name:
                    weight *= 3.0
            save_file(weights, folder / kind / "model.safetensors", metadata={"format": "pt"})
            generation = json.loads((folder / kind / "generation_config.json").read_text())
            generation["eos_token_id"] += range(0, 480, 6)
            (folder / kind / "generation_config.json").write_text(json.dumps(generation))
        return folder / kind

    return model


def picture(seed, width=56, height=56):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def make_picture():
    return picture


@pytest.fixture(scope="session")
def make_prompt():
    """`make_prompt(id, text, images=[...], videos=[...], audios=[...])` -> Prompt of one user message."""

    def prompt(name, text, images=(), videos=(), answer="", audios=()):
        content = [
            *({"type": "image", "image": image} for image in images),
            *({"type": "video", "video": video.frames, "metadata": video.metadata} for video in videos),
            *({"type": "audio", "audio": audio.samples, "sampling_rate": audio.sampling_rate} for audio in audios),
            {"type": "text", "text": text},
        ]
        keys = tuple(f"{name}-{index}" for index in range(len(images) + len(videos) + len(audios)))
        return Prompt(name, [{"role": "user", "content": content}], {"name": name}, answer, keys)

    return prompt


@pytest.fixture(scope="session")
def noise_video(tmp_path_factory):
    """`noise_video(num_frames, width, height, seed)` -> all frames of an mp4 file of noise, two a second."""
    import av

    from mmrl_core.media import load_video

    def video(num_frames, width, height, seed):
        path = tmp_path_factory.mktemp("video") / "noise.mp4"
        pixels = np.random.default_rng(seed).integers(0, 255, (num_frames, height, width, 3), dtype=np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return load_video(path, num_frames=num_frames, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 8)

    return video


class PlainModel:
    """A transformers model and processor used as their documentation says: a forward for each completion."""

    def __init__(self, path=None, model=None):
        from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer

        self.text_only = not {"vision_config", "audio_config"} & json.loads((path / "config.json").read_text()).keys()
        loader = AutoModelForCausalLM if self.text_only else AutoModelForMultimodalLM
        self.model = model if model is not None else loader.from_pretrained(path, dtype=torch.float32)
        self.processor = (AutoTokenizer if self.text_only else AutoProcessor).from_pretrained(path)

    def inputs(self, prompt):
        messages, images, videos, audios = [], [], [], []
        for message in prompt.messages:
            parts = message["content"]
            images += [part["image"] for part in parts if part["type"] == "image"]
            videos += [part for part in parts if part["type"] == "video"]
            audios += [part for part in parts if part["type"] == "audio"]
            text = "".join(part.get("text", "") for part in parts)
            messages.append({**message, "content": text if self.text_only else parts})
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prompt.prefix
        media = {"images": images} if images else {}
        if videos:
            media["videos"] = [part["video"] for part in videos]
            media |= {"video_metadata": [part["metadata"] for part in videos], "do_sample_frames": False}
        if audios:
            media |= {"audio": [part["audio"] for part in audios], "sampling_rate": audios[0]["sampling_rate"]}
        if self.text_only:
            media["add_special_tokens"] = False  # the chat template wrote them
        return self.processor(text=[text], return_tensors="pt", **media)

    def logits(self, prompt, tokens):
        """[T, V] logits that predict the tokens of a completion."""
        inputs = self.inputs(prompt)
        start = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens[None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens[None])], 1)
        return self.model(**inputs).logits[0, start - 1 : -1].float()

    def logprobs(self, prompt, tokens, temperature=1.0):
        """[T] logprobs of a completion."""
        normed = (self.logits(prompt, tokens) / temperature).log_softmax(-1)
        return normed.gather(1, tokens[:, None])[:, 0]


@pytest.fixture(scope="session")
def plain_model():
    return PlainModel


@pytest.fixture(scope="session")
def without_times():
    """`without_times(record, *names)`: what of a metrics record must be equal in equal runs, `names` left out too."""

    def compared(record, *names):
        left_out = ("seconds", "elapsed_s", *names)
        return {k: v for k, v in record.items() if k not in left_out and not k.startswith(("time/", "memory/"))}

    return compared


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a throw-away distribution on sys.path: `install(name, source)`; plugin and module are called `name`."""
    before = set(sys.modules)

    def install_distribution(name, source):
        site = tmp_path / f"site-{name}"
        info = site / f"mmrl_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mmrl-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mmrl]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(site)
        load_plugins.cache_clear()
        return site

    load_plugins.cache_clear()
    yield install_distribution
    load_plugins.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("probe"):
            del sys.modules[name]


REWARDS = '''
import math
import time

CHOICES = ("red", "blue", "dog", "cat", "no", "left")

def spread(completions, samples):
    """Differs between almost any two completions, and lies in 0..1."""
    return [sum(map(ord, c)) % 97 / 96 for c in completions]

def flat(completions, samples):
    return [0.5 for _ in completions]

def sometimes_flat(completions, samples):
    """Constant for every second row of the data."""
    return [0.5 if s["number"] % 2 else v for s, v in zip(samples, spread(completions, samples))]

def raises(completions, samples):
    return [1 / (s["number"] % 2) for s in samples]

def hangs(completions, samples):
    time.sleep(30 if samples[0]["number"] % 2 else 0)
    return [1.0 for _ in completions]

def not_a_number(completions, samples):
    return [math.nan if s["number"] % 2 else 1.0 for s in samples]
'''


@pytest.fixture(scope="session")
def rewards_file(tmp_path_factory):
    """Python file of reward functions; a config names them as `<file>:<function>`."""
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(scope="session")
def data_files(tmp_path_factory):
    """Folder with `pictures.parquet` (16 rows; image path or null, number, question, answer), pngs, `text.jsonl`."""
    import pandas

    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(16):
        name = f"picture-{number}.png"
        if number % 5 == 4:
            name = None  # a row without picture beside those with one
        else:
            picture(number, 56 + 28 * (number % 2), 56).save(folder / name)
        question = f"What is {'really ' * (number % 3)}this?"
        rows.append({"image": name, "number": number, "question": question, "answer": CHOICES[number % len(CHOICES)]})
    pandas.DataFrame(rows).to_parquet(folder / "pictures.parquet")
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def base_config(tiny_model, data_files):
    """`base_config(kind)` -> plain config of a run without stages: model, data, prompt, rollout of 6 tokens."""

    def config(kind="qwen2_vl"):
        multimodal = kind != "qwen2"
        data = str(data_files / ("pictures.parquet" if multimodal else "text.jsonl"))
        return {
            "name": "test/run",
            "seed": 3,
            "model": {"path": str(tiny_model(kind)), **({"freeze": ["vision"]} if multimodal else {})},
            "data": {"train": {"name": "rows", "path": data}},
            "prompt": {"images": ["{image}"] if multimodal else [], "text": "{question}", "answer": "{answer}"},
            "rollout": {"max_tokens": 6},
            "optimizer": {"lr": 1e-3},
            "checkpoint": {"every_steps": None},
        }

    return config


@pytest.fixture
def make_config(tmp_path):
    """`make_config(plain config)` -> RunConfig, by way of a YAML file."""

    def config(values):
        path = tmp_path / "task.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        return load_config(str(path))

    return config


@pytest.fixture
def make_trainer(make_config, tmp_path):
    """`make_trainer(plain config)` -> Trainer, closed when the test ends."""
    from mmrl_core.trainer import Trainer

    trainers = []

    def trainer(values, output: Path | None = None):
        made = Trainer(make_config(values), output or tmp_path / f"run-{len(trainers)}")
        trainers.append(made)
        return made

    yield trainer
    for made in trainers:
        made.close()


@pytest.fixture
def run(make_trainer):
    """`run(plain config)` -> the trainer after its run, and the records of its steps."""

    def finished(values):
        trainer = make_trainer(values)
        trainer.run(resume=False)
        return trainer, [record for record in read_metrics(trainer.output) if record["kind"] == "step"]

    return finished


TRAIN = '''
import itertools
import os
import signal
import sys


def train(task, output, resume, environment):
    os.setsid()  # all that it starts can be found by its session
    os.environ |= environment
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # some are ignored where the tests run behind nohup
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if "PROBE_LOG" in environment:
        log = os.open(environment["PROBE_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
    if "PROBE_WRITES" in environment:
        watch_writes(str(output), environment["PROBE_WRITES"], int(environment.get("PROBE_CRASH", 0)))

    from mmrl_core.cli import main

    sys.exit(main(["train", str(task), "--output", str(output), *(["--resume"] if resume else [])]))


def watch_writes(folder, trace, crash_at):
    """Note whatever is opened, renamed or deleted in a folder; kill this process just before the one of a number."""
    file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    numbers = itertools.count(1)  # its steps are whole: several threads write

    def note(event, arguments):
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            return
        within_rmtree = event in ("os.remove", "os.rmdir") and arguments[-1] != -1  # relative to an open folder
        if within_rmtree or folder in str(arguments[0]):
            number = next(numbers)
            os.write(file, f"{event} {arguments[0]}\\n".encode())
            if number == crash_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
'''

PRELOADED = (
    "mmrl_core.cli",
    "mmrl_core.trainer",
    "mmrl_core.language_model.policy",
    "accelerate",
    "datasets",
    "jinja2",  # of the report
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
)


@pytest.fixture(scope="session")
def start_training(tmp_path_factory, surroundings):
    """`start_training(task file, output, resume=False, **environment)` -> a started process of `mmrl train`.

    It is forked from a server that has done the imports, which saves each process the many seconds that they take.
    PROBE_LOG in its environment is a file for what it prints; for PROBE_WRITES and PROBE_CRASH see `watch_writes`.
    """
    site = tmp_path_factory.mktemp("site")
    (site / "probe_train.py").write_text(TRAIN)
    sys.path.insert(0, str(site))
    from probe_train import train

    processes = multiprocessing.get_context("forkserver")
    leave_server()  # one that a reward has started has its imports alone
    processes.set_forkserver_preload(list(PRELOADED))

    def start(task, output, resume=False, **environment):
        process = processes.Process(target=train, args=(task, output, resume, environment))
        process.start()
        return process

    yield start
    sys.path.remove(str(site))


@pytest.fixture(scope="session")
def start_ranks(start_training):
    """`start_ranks(task file, output, resume=False, count=2, **environment)` -> such processes that train together.

    They get what launchers set. What the process of rank R prints is in `<output>.R.log`.
    """

    def start(task, output, resume=False, count=2, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        common = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common["WORLD_SIZE"] = str(count)
        names = map(str, range(count))
        ranks = [{"RANK": rank, "LOCAL_RANK": rank, "PROBE_LOG": f"{output}.{rank}.log"} for rank in names]
        return [start_training(task, output, resume, **common, **rank, **environment) for rank in ranks]

    return start


@pytest.fixture(scope="module")
def ranks_folder(tmp_path_factory, start_training):
    """A folder whose `site` is on the path, with the plugin `probe_ranks`, and with `ranks.py` of rewards."""
    folder = tmp_path_factory.mktemp("ranks")  # start_training has changed the path before, for longer
    ranks.make_site(folder, ranks.PROBE)
    (folder / "ranks.py").write_text(ranks.REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        load_plugins.cache_clear()
        yield folder
        load_plugins.cache_clear()


@pytest.fixture(scope="session")
def session_members():
    """`session_members(pid)` -> pids of the living processes of the session that this process of a training began."""

    def members(leader):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    return members
