"""The report of a run: complete, safe to open, and sound for runs that hold little."""

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image, ImageDraw

from mmrl_core.errors import MMRLError
from mmrl_core.media import content_hash
from mmrl_core.runs.charts import draw_spectrogram
from mmrl_core.runs.report import write_report
from mmrl_core.runs.report.text import format_change, format_number, format_seconds
from mmrl_core.runs.rollouts import RolloutLog
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores

HOSTILE = "</div><script>alert('owned')</script><img src=x onerror=alert(1)>\x00\u202e"
SFT_STEPS, GRPO_STEPS = 60, 90
LAST = SFT_STEPS + GRPO_STEPS


def drawn_boxes(completion: str, sample: dict[str, Any]) -> list[dict[str, Any]]:
    """A view as plugins bring it, for `log.view`."""
    shapes = [{"box": sample["gold"], "label": "", "kind": "gold"}] if "gold" in sample else []
    numbers = [float(number) for number in re.findall(r"-?\d+", completion)[:4]]
    if len(numbers) == 4:
        shapes.append({"box": numbers, "label": "0.90", "kind": "predicted"})
    return shapes


def broken_view(completion: str, sample: dict[str, Any]) -> list[dict[str, Any]]:
    raise RuntimeError("the view is <broken>")


def unsound_view(completion: str, sample: dict[str, Any]) -> list[Any]:
    unsound = [None, "x", {}, {"box": [1, 2, 3]}, {"box": [1, 2, 3, "4"]}, {"box": [math.nan] * 4}, {"box": "1234"}]
    return [
        *unsound,
        {"box": [-1e150, 0, 1e150, 10], "label": "<i>", "kind": "?"},
        {"point": [500, 250], "kind": "gold"},
    ]


def scene(seed: int) -> tuple[Image.Image, list[int]]:
    """A small picture of a bright bar on a dim ground, and the bar's box per mille."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 90, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(ground).resize((84, 84), Image.Resampling.BICUBIC)
    left, top = (int(value) for value in rng.integers(6, 40, 2))
    width, height = (int(value) for value in rng.integers(20, 38, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + width, top + height), outline=(235, 232, 220), width=6)
    return image, [round(value / 84 * 1000) for value in (left, top, left + width, top + height)]


def rollouts_of(
    seed: int, split: str, *, size: int, noise: float, rng: random.Random
) -> tuple[RolloutGroup, list[float]]:
    image, gold = scene(seed)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "detect every 3"}]
    prompt = Prompt(
        f"{split}:{seed}", [{"role": "user", "content": content}], {"gold": gold}, str(gold), (content_hash(image),)
    )
    rollouts, rewards = [], []
    for index in range(size):
        box = [round(value + rng.gauss(0, noise)) for value in gold]
        text = f"<think></think><answer>[{{'Position': {box}, 'Confidence': 1.0}}]</answer>"
        if split == "train" and seed == 100 and index == size - 1:
            text = HOSTILE
        rewards.append(max(0.0, 1.0 - sum(abs(a - b) for a, b in zip(box, gold, strict=True)) / 500))
        row = Row(prompt.id, f"{seed}-{index}", None, torch.zeros(14, dtype=torch.int64), 14, truncated=index == 5)
        rollouts.append(Rollout([row], text))
    return RolloutGroup(prompt, rollouts), rewards


def scores_of(rewards: list[float], *, unscored: bool = False) -> Scores:
    iou, shape = torch.tensor(rewards), torch.ones(len(rewards))
    if unscored:
        iou[0] = math.nan
    return Scores(iou + 0.2 * shape, {"visual_rft/iou": iou, "visual_rft/format": shape}, {"visual_rft/iou": 1.0})


def write_rollouts(run: Path) -> None:
    log, rng = RolloutLog(run), random.Random(1)
    for step, stage, noise in ((0, "start", 320), (SFT_STEPS, "sft", 110), (LAST, "grpo", 30)):
        held_out = [rollouts_of(seed, "held_out", size=1, noise=noise, rng=rng) for seed in range(3)]
        scores = scores_of([reward for _, rewards in held_out for reward in rewards])
        log.write(step, stage, "held_out", [group for group, _ in held_out], scores, None, 0.0)
        log.write(step, stage, "held_out", [group for group, _ in held_out], scores, None, 1.0)
    for step, noise in ((SFT_STEPS + 10, 110), (SFT_STEPS + 50, 70), (LAST, 40)):
        trained = [rollouts_of(seed, "train", size=8, noise=noise, rng=rng) for seed in (100, 101)]
        rewards = [reward for _, rewards in trained for reward in rewards]
        advantages = []
        for _, own in trained:
            mean, std = float(np.mean(own)), float(np.std(own)) + 1e-4
            advantages.append([(reward - mean) / std for reward in own])
        advantages[0][0] = 0.0  # of the unscored one
        scores = scores_of(rewards, unscored=True)
        log.write(step, "grpo", "train", [group for group, _ in trained], scores, advantages, 1.0)


def step_record(step: int, rng: random.Random) -> dict[str, Any]:
    if step <= SFT_STEPS:
        record = {"stage": "sft", "stage_kind": "sft", "loss": 2.4 * math.exp(-step / 18) + rng.uniform(0.2, 0.3)}
        return record | {"grad_norm": rng.uniform(0.4, 1.2), "lr": 1e-3 * (1 - step / 80), "seconds": 0.11}
    done = (step - SFT_STEPS) / GRPO_STEPS
    iou = 0.45 + 0.2 * done + rng.gauss(0, 0.03)
    return {
        "stage": "grpo",
        "stage_kind": "grpo",
        "loss": rng.gauss(0, 0.002),
        "reward/total": iou + 0.2,
        "reward/total_std": 0.3 - 0.1 * done,
        "reward/visual_rft/iou": iou,
        "reward/visual_rft/format": 1.0,
        "advantage/abs_mean": 0.8,
        "kl_ref": 0.02 * done + rng.uniform(0, 0.002),
        "entropy": 1.6 - 0.7 * done,
        "clip_fraction_low": 0.0,
        "clip_fraction_high": 0.01,
        "grad_norm": rng.uniform(0.5, 1.0),
        "lr": 7e-4 * (1 - 0.9 * done),
        "completion_tokens/mean": 14 + rng.uniform(-0.2, 0.2),
        "truncated": rng.uniform(0, 0.02),
        "groups/flat": rng.uniform(0, 0.1),
        "seconds": rng.uniform(0.5, 0.6),
        "plugin/extra": rng.uniform(0, 1),
        "count/decode_tokens": 3584,
        "count/media_encodes": 16,
    }


def eval_record(step: int, label: str, level: float) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "eval", "stage": "x", "step": step, "label": label}
    for warmth, loss in (("greedy", 0.0), ("t1", 0.09)):
        record |= {
            f"{warmth}/AP": level - loss,
            f"{warmth}/mean_iou": 0.2 + 0.7 * level - loss,
            f"{warmth}/truncated": 0.01,
            f"{warmth}/reward/total": level + 0.2 - loss,
            f"{warmth}/reward/visual_rft/iou": level - loss,
            f"{warmth}/reward/visual_rft/format": 1.0,
        }
    if step:
        record["intervals"] = {"greedy/AP": [level - 0.04, level + 0.04]}
    return record | {"num_prompts": 3.0}


def write_metrics(run: Path) -> None:
    rng, lines = random.Random(2), [eval_record(0, "untrained", 0.08)]
    for step in range(1, LAST + 1):
        lines.append({"kind": "step", "step": step, **step_record(step, rng)})
        if step == SFT_STEPS:
            lines.append(eval_record(step, "after sft", 0.45))
        if step == SFT_STEPS + 45:
            lines.append(eval_record(step, f"step {step}", 0.54))
    lines.append(eval_record(LAST, "after grpo", 0.6))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "step", "st')


def write_config(run: Path, view: str | None = f"{__file__}:drawn_boxes") -> None:
    config = {
        "name": "demo_detection",
        "version": 1,
        "description": "Find the digit: a cold start on loose boxes, then GRPO on the exact reward.",
        "seed": 0,
        "model": {"build": {"name": "visual_rft/digit_detector", "width": 96}, "freeze": ["vision"]},
        "stages": [{"kind": "sft", "steps": SFT_STEPS}, {"kind": "grpo", "steps": GRPO_STEPS}],
        "log": {"view": view and {"name": view}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_run(run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    write_config(run)
    write_metrics(run)
    write_rollouts(run)
    for step in (SFT_STEPS, LAST):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
    rows = [{"file": "data/<b>train.jsonl", "row": 17, "reason": "cannot read image a.png: truncated"}]
    (run / "set_aside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """What a browser would act on: tags, attributes, and text by heading."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)
        self.close()
        self.unbalanced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def plain(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def data(self) -> dict[str, Any]:
        """What the page gives to its script."""
        return json.loads(self.scripts[0])

    @property
    def charts(self) -> dict[str, list[dict[str, Any]]]:
        """Title of each chart that is drawn -> its curves."""
        drawn = [attributes for _, attributes in self.tags if attributes.get("class") == "plot"]
        curves = self.data["charts"]
        return {(a["aria-label"] or "").removesuffix(" over steps"): curves[a["data-chart"]] for a in drawn}


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.unbalanced == []
    return page


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "demo"
    write_run(run)
    return run


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return page_of(full_run)


def test_sections_stand_in_order(full_page: Page):
    sections = [attributes["id"] for tag, attributes in full_page.tags if tag == "h2"]
    assert sections == ["answers", "held-out", "curves", "training", "run"]


def test_head_tells_task_model_and_command(full_page: Page):
    for told in ("demo_detection", "digit_detector", "frozen: vision", "150 of 150", "step-60, step-150"):
        assert told in full_page.plain
    assert "mmrl train demo/config.yaml --output demo-again" in full_page.plain


def test_the_first_screen_tells_the_held_out_score_before_and_after(full_page: Page):
    story = full_page.plain.partition("Held-out answers")[0]
    assert (
        "Held-out AP, greedy +0.520 0.080 untrained, 3 rows → 0.450 0.410 to 0.490 after sft, 3 rows → 0.600" in story
    )
    assert "Held-out total reward, greedy +0.520 0.280 untrained" in story


def test_held_out_table_shows_values_and_change_since_the_column_before(full_page: Page):
    text = full_page.plain.partition("Held-out numbers")[2]
    assert "untrained step 0, 3 rows after sft step 60, 3 rows after grpo step 150, 3 rows" in text
    assert "AP greedy 0.080 0.450 +0.370 0.410 to 0.490 0.600 +0.150 0.560 to 0.640 AP T = 1 −0.010 0.360" in text


def test_evaluations_within_a_stage_are_in_the_curves_not_the_table(full_page: Page):
    assert "step 105" not in full_page.plain
    greedy, sampled = full_page.charts["Held-out AP"]
    assert (greedy["label"], greedy["x"], greedy["y"]) == ("greedy", [0, 60, 105, 150], [0.08, 0.45, 0.54, 0.6])
    assert greedy["low"] == [None, 0.41, 0.5, 0.56] and "low" not in sampled
    assert sampled["label"] == "T = 1" and greedy["measured"]
    assert full_page.data["stages"] == [["sft", 1, SFT_STEPS], ["grpo", SFT_STEPS + 1, LAST]]


def test_charts_of_a_mixtures_parts_have_titles_of_their_own(tmp_path: Path):
    write_config(tmp_path)
    names = ("reward/total", "a/reward/total", "b/reward/total", "a/reward/gui/iou", "a/accuracy", "b/accuracy")
    names += ("a/accuracy/count", "a/count_error")
    record = {"kind": "eval", "step": 0, "label": "untrained"} | {f"greedy/{name}": 0.5 for name in names}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    page = page_of(tmp_path)
    titles = {"reward/total", "a/reward/total", "b/reward/total", "iou reward", "a/accuracy", "b/accuracy"}
    assert {f"Held-out {title}" for title in titles} <= {*page.charts}
    table = page.plain.partition("Benchmark metrics decoding")[2]
    order = ("a/accuracy", " count ", "Rewards", "a/reward/total", "Other numbers", "count error")
    assert sorted(order, key=table.index) == list(order)


def test_every_known_metric_has_a_curve(full_page: Page):
    expected = {"Held-out total reward", "Held-out AP", "Held-out mean iou", "Held-out iou reward"}
    expected |= {"Total reward", "Each reward", "Reward spread within a group", "Flat groups"}
    expected |= {"Loss (sft)", "Loss (grpo)", "Gradient norm", "KL to the reference policy", "Entropy"}
    expected |= {"Learning rate", "Completion length", "Truncated", "Time per step", "plugin/extra"}
    assert expected <= set(full_page.charts)
    assert all(curve["x"] and len(curve["x"]) == len(curve["y"]) for all in full_page.charts.values() for curve in all)


def test_what_never_changed_is_a_line_and_no_chart(full_page: Page):
    told = ("The same all along: Size of advantages 0.800", "The same all along: Clip fraction low 0.000 high 0.010")
    assert all(line in full_page.plain for line in told) and "Clip fraction" not in full_page.charts
    assert "Held-out format reward greedy 1.000 T = 1 1.000" in full_page.plain


def test_a_curve_holds_what_was_logged(full_run: Path, full_page: Page):
    records = [json.loads(line) for line in (full_run / "metrics.jsonl").read_text().splitlines()[:-1]]
    steps = [record for record in records if record["kind"] == "step"]
    for title, keys in {
        "Total reward": ["reward/total"],
        "Each reward": ["reward/visual_rft/iou", "reward/visual_rft/format"],
        "Gradient norm": ["grad_norm"],
    }.items():
        for curve, key in zip(full_page.charts[title], keys, strict=True):
            logged = {record["step"]: record[key] for record in steps if key in record}
            drawn = {x: y for x, y in zip(curve["x"], curve["y"], strict=True) if y is not None}
            assert drawn == pytest.approx(logged, rel=1e-4), title
    assert [curve["label"] for curve in full_page.charts["Each reward"]] == ["iou", "format"]


def test_gold_and_predicted_boxes_are_drawn_and_distinguishable(full_page: Page):
    styles = [attributes.get("class") or "" for tag, attributes in full_page.tags if tag == "rect"]
    assert styles.count("shape predicted") == 9 + 2  # three prompts at three milestones, and two keys
    assert styles.count("shape gold") == 9 + 6 + 3  # also one for each of six training groups, and three keys
    assert "shape better" in styles and "shape worse" in styles


def test_a_box_is_drawn_where_it_is(tmp_path: Path):
    write_config(tmp_path)
    image = Image.new("RGB", (200, 100))
    content = [{"type": "image", "image": image}]
    prompt = Prompt("p", [{"role": "user", "content": content}], {"gold": [250, 500, 500, 1000]})
    row = Row("p", "t", None, torch.zeros(1, dtype=torch.int64), 1)
    RolloutLog(tmp_path).write(0, "s", "held_out", [RolloutGroup(prompt, [Rollout([row], "")])], None, None, 0.0)
    tags = page_of(tmp_path).tags
    assert ("use", {"href": "#picture-0"}) in tags
    (box,) = [attributes for tag, attributes in tags if tag == "rect" and attributes.get("class") == "halo"]
    assert [box[key] for key in ("x", "y", "width", "height")] == ["25.0%", "50.0%", "25.0%", "50.0%"]


def test_every_completion_stands_with_rewards_and_signed_advantage(full_page: Page):
    bars = [attributes for tag, attributes in full_page.tags if attributes.get("class") in ("better", "worse")]
    assert len(bars) == 6 * 8 - 3  # one in each step is unscored
    assert {attributes["class"] for attributes in bars} == {"better", "worse"}
    widths = [float(re.findall(r"[\d.]+", attributes["style"] or "")[0]) for attributes in bars]
    assert max(widths) == 50.0
    assert "unscored" in full_page.plain
    assert re.search(r"\+\d\.\d{3}", full_page.plain) and re.search(r"−\d\.\d{3}", full_page.plain)


def test_nothing_a_completion_says_becomes_markup(full_run: Path, full_page: Page):
    html = (full_run / "report.html").read_text(encoding="utf-8")
    assert "alert(" in full_page.plain and "owned" in full_page.plain
    assert not [tag for tag, _ in full_page.tags if tag in ("iframe", "object", "link", "base", "form")]
    assert [tag for tag, _ in full_page.tags].count("script") == 5 and "owned" not in "".join(full_page.scripts[1:])
    assert not [name for _, attributes in full_page.tags for name in attributes if name.startswith("on")]
    assert "\x00" not in html
    assert "data/<b>train.jsonl" in full_page.plain


def test_nothing_is_fetched(full_page: Page):
    addresses = [
        value for _, attributes in full_page.tags for key, value in attributes.items() if key in ("href", "src")
    ]
    assert addresses and all(address and address.startswith(("data:image/", "#")) for address in addresses)
    policies = [attributes["content"] for _, attributes in full_page.tags if attributes.get("http-equiv")]
    assert len(policies) == 1 and "default-src 'none'; img-src data:;" in (policies[0] or "")
    assert "connect-src" not in (policies[0] or "") and "'unsafe-inline'; script-src 'sha256-" in (policies[0] or "")


def test_each_picture_is_embedded_once(full_page: Page):
    pictures = [attributes["href"] for tag, attributes in full_page.tags if tag == "image"]
    assert len(pictures) == len(set(pictures)) == 3 + 2


def test_counters_are_summed(full_page: Page):
    assert "decode_tokens 322,560 3,584 3,584" in full_page.plain


def test_writing_twice_gives_the_same_page(full_run: Path, full_page: Page):
    before = (full_run / "report.html").read_bytes()
    assert write_report(full_run).read_bytes() == before
    assert not list(full_run.glob(".*"))


def test_a_repeated_step_counts_once_with_its_last_value(tmp_path: Path):
    lines = [
        {"kind": "step", "stage": "grpo", "stage_kind": "grpo", "step": 1, "reward/total": x} for x in (0.25, 0.75)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = page_of(tmp_path).charts["Total reward"]
    assert (curve["x"], curve["y"]) == ([1], [0.75])


@pytest.mark.parametrize("steps", [1, 2, 5000])
def test_runs_of_any_length_are_drawn(tmp_path: Path, steps: int):
    lines = [
        {"kind": "step", "stage": "sft", "stage_kind": "sft", "step": i + 1, "loss": 1 / (i + 1)} for i in range(steps)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert (
        "Loss" in page.plain
        and "The run holds no evaluation." in page.plain
        and "The run holds no rollouts." in page.plain
    )
    assert len((tmp_path / "report.html").read_bytes()) < 150_000


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "rollouts"])
def test_a_run_that_holds_one_thing_only_is_told(tmp_path: Path, kept: str):
    {"config.yaml": write_config, "metrics.jsonl": write_metrics, "rollouts": write_rollouts}[kept](tmp_path)
    assert len(page_of(tmp_path).plain) > 200


@pytest.mark.parametrize(
    "config", ["", "[1, 2]", "name: [", "log: {view: 3}\nstages: {a: 1}\nmodel: x", "name: !!python/object:os.x {}"]
)
def test_an_odd_config_does_not_hide_the_run(tmp_path: Path, config: str):
    write_metrics(tmp_path)
    (tmp_path / "config.yaml").write_text(config)
    assert "after grpo" in page_of(tmp_path).plain


def test_odd_metrics_are_left_out(tmp_path: Path):
    lines = [
        '{"kind": "step", "step": "x"}',
        '{"kind": "step"}',
        '{"kind": "step", "step": 1, "loss": NaN, "kl_ref": Infinity, "entropy": null, "lr": "high", "seconds": true}',
        '{"kind": "step", "step": 2, "stage": "grpo", "kl_ref": 1e300, "grad_norm": -1e300}',
        '{"kind": "step", "step": 3, "stage": "grpo", "kl_ref": 1e-300, "grad_norm": 1e300}',
        '{"kind": "eval", "step": 3, "greedy/AP": NaN, "label": "<b>"}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(tmp_path)
    assert "nan" not in page.plain.lower() and {"KL to the reference policy", "Gradient norm"} == set(page.charts)


def test_odd_rollout_lines_are_shown_as_far_as_they_go(tmp_path: Path):
    (tmp_path / "rollouts" / "media").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"x")
    lines: list[dict[str, Any]] = [
        {},
        {"prompt_id": 3, "media": "x", "rewards": [], "total": "high", "advantage": None, "completion": 7},
        {"prompt_id": "out", "media": ["../secret.png", "/etc/passwd", None], "completion_media": "../secret.png"},
        {"prompt_id": "\ud800", "completion": "\ud800", "num_tokens": "x", "group": [1], "sample": None},
        {"prompt_id": "a", "turns": "x", "outcome": [1], "times_s": 3, "total": 10**400},
        {"prompt_id": "b", "turns": [None, {}, {"role": 3, "text": None, "media": ["m"], "times_s": ["1", None]}]},
        {"prompt_id": "c", "turns": [{"media": {}, "times_s": [math.nan]}], "outcome": {"deep": {"x": [10**400]}}},
    ]
    for split in ("train", "held_out"):
        path = tmp_path / "rollouts" / f"step-000001-{split}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tmp_path)
    assert "picture missing or unreadable" in page.plain
    assert not [tag for tag, _ in page.tags if tag == "image"]


@pytest.mark.parametrize("view", ["nobody/nothing", f"{__file__}:broken_view"])
def test_a_view_that_fails_leaves_the_report_standing_and_is_named(tmp_path: Path, view: str):
    write_config(tmp_path, view)
    write_rollouts(tmp_path)
    page = page_of(tmp_path)
    assert ("nobody/nothing" if "nobody" in view else "the view is <broken>") in page.plain
    assert "halo" not in {attributes.get("class") for _, attributes in page.tags}


def test_unsound_shapes_are_left_out_and_far_ones_are_cut(tmp_path: Path):
    write_config(tmp_path, f"{__file__}:unsound_view")
    write_rollouts(tmp_path)
    halos = [(tag, attributes) for tag, attributes in page_of(tmp_path).tags if attributes.get("class") == "halo"]
    assert {tag for tag, _ in halos} == {"rect", "circle"}
    boxes = {(box["x"], box["y"], box["width"], box["height"]) for tag, box in halos if tag == "rect"}
    assert boxes == {("-2.0%", "0.0%", "104.0%", "1.0%")}
    assert {(point["cx"], point["cy"]) for tag, point in halos if tag == "circle"} == {("50.0%", "25.0%")}


def spans_of(completion: str, sample: dict[str, Any]) -> list[Any]:
    """A view of time; each word of a completion is the end of a span in 40 seconds."""
    ends = [float(word) for word in re.findall(r"[\d.]+", completion)]
    unsound = [{"span": [1, 2]}, {"span": [1, 2, 3], "length_s": 4}, {"span": [math.nan, 2], "length_s": 4}]
    unsound += [{"span": [1, 2], "length_s": length} for length in (0, -1, math.inf, "4", None)]
    unsound += [{"span": "12", "length_s": 4}, {"span": [10**400, 2], "length_s": 4}]
    gold = {"span": [10, 20], "length_s": 40, "kind": "gold"}
    call = {"span": [5, 30], "length_s": 40, "kind": "call"}
    return [*unsound, gold, *([call] if sample.get("calls") else [])] + [
        {"span": [12, end], "length_s": 40.0, "kind": "predicted"} for end in ends
    ]


def film(times_s: list[float], brightness: int) -> dict[str, Any]:
    frames = torch.arange(brightness, brightness + len(times_s), dtype=torch.uint8)
    return {"type": "video", "video": frames.reshape(-1, 1, 1, 1).expand(-1, 3, 6, 8), "times_s": times_s}


def conversation(ends: str, tool_text: str = "frames of the clip") -> Rollout:
    """A call, what it brought, and an answer."""
    turns = [("assistant", f"<think>look</think><tool_call>{{}}</tool_call>{HOSTILE}"), ("assistant", ends)]
    first, second = ({"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns)
    tool = {"role": "tool", "content": [{"type": "text", "text": tool_text}, film([10.0, 12.5], 200)]}
    row = Row("p", "t", None, torch.zeros(2, dtype=torch.int64), 2)
    return Rollout([row, row], ends, [first, tool, second], {"calls": 1, "why": HOSTILE, "ok": True, HOSTILE: None})


def write_conversations(run: Path, *rollouts: Rollout, split: Any = "held_out", view: str = "spans_of") -> None:
    write_config(run, f"{__file__}:{view}")
    content = [film([0.0, 20.0, 40.0], 0), {"type": "text", "text": "when?"}]
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": content}], {}), list(rollouts))
    advantages = [[1.0 - 2.0 * index for index in range(len(rollouts))]] if split == "train" else None
    RolloutLog(run).write(0, "s", split, [group], None, advantages, 0.0)


@pytest.mark.parametrize("split", ["held_out", "train"])
def test_a_conversation_is_shown_turn_by_turn_with_frames_and_their_times(tmp_path: Path, split: str):
    write_conversations(tmp_path, conversation("24"), split=split)
    text = page_of(tmp_path).plain
    parts = ["0.0 s 20.0 s 40.0 s", "assistant", "<think> look </think> <tool_call> {} </tool_call>"]
    parts += ["tool", "frames of the clip[video]", "10.0 s 12.5 s", "assistant", "24"]
    position = 0
    for part in parts:
        assert part in text[position:], part
        position = text.index(part, position) + len(part)
    for fact in ("calls 1 ", "why </div><script>", "ok true "):
        assert fact in text[position:]


def test_nothing_that_a_turn_or_a_fact_says_becomes_markup(tmp_path: Path):
    write_conversations(tmp_path, conversation("24", HOSTILE))
    path = tmp_path / "rollouts" / "step-000000-held_out.jsonl"
    line = json.loads(path.read_text())
    line["turns"][1]["role"] = line["turns"][1]["style"] = '"><b>tool'
    path.write_text(json.dumps(line))
    page = page_of(tmp_path)
    assert page.plain.count("alert('owned')") == 4 and "><b>tool" in page.plain
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "link", "base", "form", "img")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_completions_stand_as_they_were_written(tmp_path: Path):
    text = "a<answer></think>\n  <think><think>b</answer> <tool_call>\n<THINK>c"
    row = Row("p", "t", None, torch.zeros(1), 1)
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": "?"}], {}), [Rollout([row], text)])
    RolloutLog(tmp_path).write(0, "s", "held_out", [group], None, None, 0.0)
    assert text in "".join(page_of(tmp_path).text)


def test_turns_beyond_the_limit_are_counted(tmp_path: Path):
    long = conversation("24")
    write_conversations(tmp_path, Rollout(long.rows, "24", [*long.messages] * 5))
    assert "3 more turns are in the rollout file." in page_of(tmp_path).plain


def lanes_of(page: Page) -> list[tuple[list[tuple[str, str]], list[str]]]:
    """Of each lane: (style, where it lies) of its spans, and where its frames are marked."""
    lanes: list[tuple[list[tuple[str, str]], list[str]]] = []
    for _, attributes in page.tags:
        kind, _, style = (attributes.get("class") or "").partition(" ")
        if kind == "lane":
            lanes.append(([], []))
        elif kind == "span":
            lanes[-1][0].append((style, attributes["style"] or ""))
        elif kind == "tick":
            lanes[-1][1].append(attributes["style"] or "")
    return lanes


# In a length of 40 s, 10 s are a quarter: the gold lies at 25 % and is 25 % wide, the answer from 12 s to 24 s at 30 %.
GOLD = ("gold", "left: 25.0%; width: 25.0%")
CALL = ("call", "left: 12.5%; width: 62.5%")
SEEN = ["left: 25.0%", "left: 31.25%"]


def test_spans_and_frames_lie_on_a_timeline_where_they_are(tmp_path: Path):
    write_conversations(tmp_path, conversation("24"))
    page = page_of(tmp_path)
    assert lanes_of(page) == [
        ([GOLD], []),
        ([], ["left: 0.0%", "left: 50.0%", "left: 100.0%"]),
        ([CALL], SEEN),
        ([("predicted", "left: 30.0%; width: 30.0%")], []),
    ]
    assert "gold 10.0 to 20.0 s frames tool calls 5.0 to 30.0 s predicted 12.0 to 24.0 s 0 40.0 s" in page.plain


def test_a_group_has_a_lane_for_each_completion(tmp_path: Path):
    silent = replace(conversation("none"), messages=[], outcome={})
    write_conversations(tmp_path, conversation("24"), conversation("0 99"), silent, split="train")
    lanes = lanes_of(page_of(tmp_path))
    assert lanes[0] == ([GOLD], []) and len(lanes) == 2 + 3
    assert lanes[2] == ([CALL, ("better", "left: 30.0%; width: 30.0%")], [])
    # An end before the start is drawn as the same stretch, 0 to 12 s; what lies outside of the film ends at its edge.
    worse = [("worse", "left: 0.0%; width: 30.0%"), ("worse", "left: 30.0%; width: 70.0%")]
    assert lanes[3] == ([CALL, *worse], [])
    assert lanes[4] == ([], [])


def test_pictures_on_which_nothing_is_drawn_are_shown_once(tmp_path: Path):
    write_conversations(tmp_path, conversation("24"))
    old = tmp_path / "rollouts" / "step-000000-held_out.jsonl"
    (tmp_path / "rollouts" / "step-000005-held_out.jsonl").write_text(old.read_text())
    page = page_of(tmp_path)
    used = [attributes["href"] for tag, attributes in page.tags if tag == "use"]
    assert len(used) == 3 + 2 * 2  # the prompt's frames, and at each milestone those of the tool
    assert len([tag for tag, _ in page.tags if tag == "image"]) == 3 + 2


def test_a_view_reads_what_happened_on_the_way(tmp_path: Path):
    write_conversations(tmp_path, replace(conversation("24"), outcome={"calls": 0}))
    assert CALL not in [span for spans, _ in lanes_of(page_of(tmp_path)) for span in spans]


def test_a_film_of_noise_is_not_kept_pixel_by_pixel(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for name, image in (("noise", Image.fromarray(noise)), ("flat", Image.new("RGB", (224, 224)))):
        group = RolloutGroup(
            Prompt("p", [{"role": "user", "content": [{"type": "image", "image": image}]}], {}),
            [replace(conversation("24"), messages=[])],
        )
        RolloutLog(tmp_path / name).write(0, "s", "held_out", [group], None, None, 0.0)
        (uri,) = [attributes["href"] for tag, attributes in page_of(tmp_path / name).tags if tag == "image"]
        assert (uri or "").startswith(f"data:image/{'jpeg' if name == 'noise' else 'png'};base64,")


def test_a_policy_that_makes_pictures_is_shown(tmp_path: Path):
    row = Row("p", "t", None, torch.zeros(1), 1)
    made = [Rollout([row], scene(seed)[0]) for seed in (1, 2)]
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": "a 3"}], {}), made)
    RolloutLog(tmp_path).write(4, "grpo", "train", [group], None, [[0.5, -0.5]], 1.0)
    page = page_of(tmp_path)
    assert [tag for tag, _ in page.tags].count("image") == 2
    assert "table" not in [tag for tag, _ in page.tags], "they stand in a gallery"
    assert "advantage +0.500" in page.plain and "advantage −0.500" in page.plain


def test_pictures_made_of_a_held_out_prompt_stand_side_by_side(tmp_path: Path):
    write_metrics(tmp_path)
    log, row = RolloutLog(tmp_path), Row("p", "t", None, torch.zeros(1), 1)
    for step, grey in ((0, 10), (SFT_STEPS, 100), (LAST, 200)):
        groups = [
            RolloutGroup(
                Prompt(f"held_out:{index}", [{"role": "user", "content": text}], {}),
                [Rollout([row], Image.new("RGB", (8, 8), (grey + index,) * 3))],
            )
            for index, text in enumerate(("a fox on ice", "a green rabbit"))
        ]
        log.write(step, "grpo", "held_out", groups, None, None, 0.0)
    page = page_of(tmp_path)
    greys = {}
    for tag, attributes in page.tags:
        if tag == "image":
            data = base64.b64decode((attributes["href"] or "").partition(",")[2])
            greys[f"#{attributes['id']}"] = Image.open(io.BytesIO(data)).getpixel((0, 0))[0]
    shown = [greys[attributes["href"]] for tag, attributes in page.tags if tag == "use"]
    assert shown == [10, 100, 200, 11, 101, 201]
    text = page.plain
    assert text.index("a fox on ice") < text.index("untrained greedy") < text.index("a green rabbit")


def test_a_video_that_the_policy_made_is_shown_moving(tmp_path: Path):
    row = Row("p", "t", None, torch.zeros(1), 1)
    film = [Image.new("RGB", (800, 400), (level,) * 3) for level in (0, 120, 240)]
    group = RolloutGroup(Prompt("p", [{"role": "user", "content": "a fox runs"}], {}), [Rollout([row], film)])
    path = RolloutLog(tmp_path).write(4, "grpo", "train", [group], None, [[0.5]], 1.0)
    (image,) = [a for tag, a in page_of(tmp_path).tags if tag == "img" and a["alt"] == "video made by the policy"]
    assert (image["src"] or "").startswith("data:image/webp;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").partition(",")[2])))
    assert (shown.n_frames, shown.size) == (3, (640, 320)), "scaled down like other large pictures"

    (torn,) = (path.parent / "media").iterdir()
    torn.write_bytes(torn.read_bytes()[:-40])
    assert "video made by the policy" not in [a.get("alt") for _, a in page_of(tmp_path).tags]


def test_a_sound_can_be_seen_and_heard_beside_its_prompt(tmp_path: Path):
    rate, tone = 16_000, [0.5 * math.sin(2 * math.pi * 1000 * n / 16_000) for n in range(16_000)]
    samples = np.asarray([*tone, *[0.0] * 16_000], np.float32)
    part = {"type": "audio", "audio": samples, "sampling_rate": rate}
    prompt = Prompt("train:1", [{"role": "user", "content": [part, {"type": "text", "text": "what is heard"}]}], {})
    row = Row(prompt.id, "t", None, torch.zeros(3, dtype=torch.int64), 3)
    log = RolloutLog(tmp_path)
    log.write(1, "grpo", "train", [RolloutGroup(prompt, [Rollout([row], "a tone")])], None, None, 1.0)
    page = write_report(tmp_path).read_text()
    (uri,) = re.findall(r'<audio controls preload="none" src="data:audio/mpeg;base64,([^"]+)"', page)
    played, played_rate = soundfile.read(io.BytesIO(base64.b64decode(uri)))
    assert played_rate == rate and np.abs(played[:16_000] - samples[:16_000])[1000:-1000].max() < 0.05
    assert "picture missing" not in page and len(re.findall(r'<svg class="picture"', page)) == 1
    (file,) = (tmp_path / "rollouts" / "media").iterdir()
    file.write_bytes(b"torn")
    page = write_report(tmp_path).read_text()
    assert "<audio" not in page and "picture missing or unreadable" in page


def test_a_spectrogram_is_bright_where_a_tone_sounds():
    rate = 16_000
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    light = np.asarray(draw_spectrogram(np.concatenate([tone, 0 * tone]), rate).convert("L"), float)  # [128, 480]
    # 1000 Hz are 1000 mel, 8000 Hz are 2840: at 0.352 of the height, row 128 * (1 - 0.352) = 83 from the top.
    assert abs(light[:, :230].mean(1).argmax() - 83) <= 1
    assert light[:, 250:].max() < 10 < 200 < light[83, :230].min() + 50
    assert np.asarray(draw_spectrogram(np.zeros(5), rate)).max() < 10


def test_a_run_in_progress_shows_its_newest_evaluation(tmp_path: Path):
    records = [eval_record(0, "untrained", 0.1), eval_record(10, "step 10", 0.2), eval_record(20, "step 20", 0.3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = page_of(tmp_path).plain
    assert "untrained step 0, 3 rows step 20 step 20, 3 rows" in text and "AP greedy 0.100 0.300 +0.200" in text


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(MMRLError, match="not a run directory"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_numbers_are_written_for_reading():
    numbers = (0.57321, -0.5, 12, 0.0, 0, 1234.5, 123.45, 0.00002, 3.2e9, None, math.nan)
    expected = ["0.573", "−0.500", "12", "0.000", "0", "1,234", "123.5", "2.0e-05", "3.2e+09", "–", "–"]
    assert [format_number(value) for value in numbers] == expected
    assert [format_change(value) for value in (0.25, -0.5, 0.0, -1e-9, None)] == [
        "+0.250",
        "−0.500",
        "±0.000",
        "±0.000",
        "–",
    ]
    assert [format_seconds(value) for value in (0, 12.04, 3600.0, 1e150)] == [
        "0.0 s",
        "12.0 s",
        "3600.0 s",
        "1.0e+150 s",
    ]


@pytest.mark.parametrize("package", ["jinja2", "PIL"])
def test_a_missing_package_of_the_report_is_one_sentence(full_run: Path, package: str, monkeypatch: pytest.MonkeyPatch):
    before = (full_run / "report.html").read_bytes() if (full_run / "report.html").exists() else None
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MMRLError) as caught:
        write_report(full_run)
    name = {"PIL": "pillow"}.get(package, package)
    assert str(caught.value) == f"the report needs the package {name}. Try: pip install 'mmrl-core[report]'"
    assert before is None or (full_run / "report.html").read_bytes() == before


def test_importing_the_rooms_of_runs_and_rewards_imports_nothing_heavy():
    heavy = ("torch", "transformers", "jinja2", "matplotlib", "av", "datasets", "pyarrow")
    code = f"import sys, mmrl_core.runs, mmrl_core.scoring; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "model",
    [
        {"path": "m", "lora": {"rank": 8}, "freeze": ["vision"]},
        {"path": "m", "policy": {"name": "language_model", "lora": {"rank": 8}, "freeze": ["vision"]}},
        {"path": "m", "policy": {"lora": {"rank": 8}, "freeze": ["vision"]}},
        {"path": "m", "policy": "language_model", "lora": {"rank": 8}, "freeze": ["vision"]},
    ],
)
def test_options_of_the_policy_are_told_wherever_the_config_has_them(tmp_path: Path, model: dict[str, Any]):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": "t", "model": model}))
    assert "m; LoRA rank 8; frozen: vision" in page_of(tmp_path).plain
