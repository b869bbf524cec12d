"""Run folders from strangers: `mmrl view` shows what it can, says what it cannot, and runs nothing of theirs."""

import base64
import hashlib
import json
import os
import re
import struct
import zlib
from pathlib import Path

import pytest

import mmrl_core.runs.report
from mmrl_core.cli import main
from mmrl_core.runs import write_report
from mmrl_core.runs.rollouts import MAX_LINE_BYTES, read_json_lines

STEP = {"kind": "step", "stage": "grpo", "stage_kind": "grpo", "step": 1, "loss": 0.5, "seconds": 1.0}
ROLLOUT = {"step": 1, "stage": "grpo", "prompt_id": "train:0", "group": 0, "prompt": "what?", "completion": "this"}
MUCH = "x" * 1_000_000


def metrics(run: Path, *records: object) -> None:
    text = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    (run / "metrics.jsonl").write_text(text)


def rollouts(run: Path, **values: object) -> None:
    folder = run / "rollouts"
    (folder / "media").mkdir(parents=True, exist_ok=True)
    lines = [{**ROLLOUT, **values, "index": index} for index in range(2)]
    for split in ("train", "held_out", "answers"):
        (folder / f"step-000001-{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def png(width: int, height: int) -> bytes:
    """A picture whose header alone says how large it is; its pixels compress to next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def medium(name: str, content: bytes | None):
    def make(run: Path) -> None:
        rollouts(run, media=[f"media/{name}"], completion_media=f"media/{name}")
        path = run / "rollouts" / "media" / name
        os.mkfifo(path) if content is None else path.write_bytes(content)

    return make


def config(text: str):
    return lambda run: (run / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")


def fifo(name: str):
    def make(run: Path) -> None:
        rollouts(run)
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return make


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

# How the folder is made, and what the page says of it.
HOSTILE = {
    "aliases that grow": (config(f"{LAUGHS}name: *i\n"), "has an alias (*a), which no run writes"),
    "a config nested 5,000 deep": (config("[" * 5000 + "]" * 5000), "config.yaml cannot be read: "),
    "a config nested 100 deep": (config("[" * 100 + "]" * 100), "is nested more than 40 deep"),
    "a config of 2 MB": (config("name: " + "x" * 2_000_000), "is longer than 1,048,576 bytes"),
    "a number of 5,000 digits": (config(f"seed: {'9' * 5000}"), "config.yaml cannot be read: "),
    "a date that is none": (config("name: 2020-99-99"), "config.yaml cannot be read: "),
    "a key that is a list": (config("{[1]: 2}"), "config.yaml cannot be read: "),
    "a config that is a FIFO": (fifo("config.yaml"), "config.yaml is not shown: it is no regular file"),
    "a config that is a link": (lambda run: (run / "config.yaml").symlink_to("/etc/passwd"), "is not shown"),
    "stages that are a number": (lambda run: (config("stages: 3")(run), metrics(run, STEP)), "Steps done"),
    "metrics that are a FIFO": (fifo("metrics.jsonl"), "The run holds no steps yet"),
    "rollouts that are a FIFO": (fifo("rollouts/step-000001-train.jsonl"), "train:0"),
    "rows set aside that are a FIFO": (fifo("set_aside.jsonl"), "train:0"),
    "a step beyond all numbers": (lambda run: metrics(run, {**STEP, "step": 10**400}, STEP), "Steps done"),
    "a step that is a bool": (lambda run: metrics(run, {**STEP, "step": True}, {**STEP, "step": -1}), "no steps yet"),
    "years of seconds": (lambda run: metrics(run, {**STEP, "seconds": 1e300}), "Time in steps"),
    "numbers beyond all numbers": (
        lambda run: metrics(run, f'{{"kind": "step", "step": {"9" * 5000}}}', STEP),
        "Steps",
    ),
    "sums beyond all numbers": (
        lambda run: metrics(run, *({**STEP, "step": n, "failures/a": 1e308, "count/b": 1e308} for n in range(3))),
        "Reward a failed on inf completions",
    ),
    "metrics that are lists": (lambda run: metrics(run, [1], "3", '"x"', "null", STEP), "Steps done"),
    "ten thousand metrics": (
        lambda run: metrics(run, {**STEP, **{f"reward/{n}": 1.0 for n in range(10_000)}}),
        "Each reward",
    ),
    "a thousand stages": (lambda run: metrics(run, *({**STEP, "step": n, "stage": n} for n in range(1000))), "Stages"),
    "names of a million letters": (lambda run: metrics(run, {**STEP, "stage": MUCH, f"reward/{MUCH}": 1.0}), "xxx…"),
    "messages of a million letters": (
        lambda run: metrics(run, {"kind": "error", "step": 1, "message": MUCH}),
        "more characters",
    ),
    "messages that are no text": (lambda run: metrics(run, {"kind": "alarm", "message": {"a": [1]}}), "a"),
    "a completion of 10 MB": (
        lambda run: rollouts(run, completion=MUCH * 10, prompt=MUCH, answer=MUCH),
        "more characters",
    ),
    "ids of a million letters": (lambda run: rollouts(run, prompt_id=MUCH, stage=MUCH, rewards={MUCH: 1.0}), "xxx…"),
    "a thousand rewards": (lambda run: rollouts(run, rewards={f"r{n}": 1.0 for n in range(1000)}), "r59"),
    "tokens that are no number": (lambda run: rollouts(run, num_tokens=10**400, total=1e999), "train:0"),
    "rows set aside of a million letters": (
        lambda run: (rollouts(run), (run / "set_aside.jsonl").write_text(json.dumps({"file": MUCH, MUCH: MUCH}))),
        "1 broken row was set aside",
    ),
    "a picture of 2 billion pixels": (medium("bomb.png", png(1 << 15, 1 << 16)), "picture missing or unreadable"),
    "a picture of one long line": (medium("line.png", png(1, 1 << 27)), "picture missing or unreadable"),
    "a picture that is a program": (
        medium("eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n%%EOF\n"),
        "picture missing or unreadable",
    ),
    "a picture that is a FIFO": (medium("fifo.png", None), "picture missing or unreadable"),
    "a sound that is a FIFO": (medium("fifo.flac", None), "picture missing or unreadable"),
    "a film that is a FIFO": (medium("fifo.webp", None), "train:0"),
    "starts that are none": (
        lambda run: (
            metrics(run, STEP),
            (run / "starts.jsonl").write_text('[1]\n{"versions": 3, "devices": {}}\n{}\n'),
        ),
        "Steps done",
    ),
    "a start of a million letters": (
        lambda run: (
            metrics(run, STEP),
            (run / "starts.jsonl").write_text(json.dumps({"command": MUCH, "time": MUCH, "versions": {MUCH: MUCH}})),
        ),
        "more characters",
    ),
    "intervals that are none": (
        lambda run: metrics(
            run,
            {"kind": "eval", "step": 1, "greedy/a": 1.0, "intervals": 3},
            {"kind": "eval", "step": 2, "greedy/a": 1.0, "intervals": {"greedy/a": ["x", 1]}, "num_prompts": -1},
            {"kind": "eval", "step": 3, "greedy/a": 1.0, "intervals": {"greedy/a": [0, 10**400]}, "num_prompts": 1e300},
        ),
        "Held-out a",
    ),
    "marks that are none": (
        lambda run: rollouts(run, correct="yes", said=[1], gold={"a": 1}, num_tokens="x", rewards=3, total=True),
        "train:0",
    ),
    "surrogates everywhere": (
        lambda run: (
            metrics(run, {**STEP, "stage": "\ud800", "reward/\ud800": 1.0}, {"kind": "alarm", "message": "\udfff"}),
            rollouts(run, completion="\ud800", prompt="\udfff", prompt_id="\ud800", rewards={"\ud800": 1.0}),
            (run / "set_aside.jsonl").write_text(json.dumps({"id": "\ud800", "reason": "\udfff"})),
        ),
        "1 broken row was set aside",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_run_is_shown_as_far_as_it_goes(tmp_path: Path, case: str):
    make, told = HOSTILE[case]
    make(tmp_path)
    page = write_report(tmp_path, runs_files=False).read_text(encoding="utf-8")
    assert told in page
    assert len(page) < 2_500_000


def test_a_line_too_long_to_be_one_of_a_run_is_left_out_and_the_next_is_read(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"kind": "step", "step": 1, "x": "' + bytes(MAX_LINE_BYTES) + b'"}\n')
        file.write(json.dumps({**STEP, "step": 2}).encode() + b"\n")
    assert [record["step"] for record in read_json_lines(path)] == [2]


HTML = "</div><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


FOLDER = Path(mmrl_core.runs.report.__file__).parent
OUR_SCRIPTS = [
    (FOLDER / name).read_text()
    for name in ("vendor/uplot-1.6.32/uPlot.iife.min.js", "charts.js", "answers.js", "page.js")
]
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src"


def test_nothing_that_a_run_holds_is_html_or_script(tmp_path: Path):
    metrics(
        tmp_path,
        {**STEP, "stage": HTML, f"reward/{HTML}": 1.0},
        {"kind": "error", "step": 1, "message": HTML},
        {"kind": "alarm", "step": 1, "message": HTML},
        {"kind": "failure", "step": 1, "name": HTML, "message": HTML},
        {"kind": "resume", "step": 1, "changes": [HTML]},
        {"kind": "eval", "step": 1, "label": HTML, f"greedy/{HTML}": 1.0},
    )
    rollouts(tmp_path, completion=HTML, prompt=HTML, prompt_id=HTML, answer=HTML, stage=HTML, rewards={HTML: 1.0})
    (tmp_path / "set_aside.jsonl").write_text(json.dumps({"file": HTML, "reason": HTML, HTML: HTML}))
    (tmp_path / "config.yaml").write_text(f"name: '{HTML}'\ndescription: '{HTML}'\n")
    (tmp_path / "starts.jsonl").write_text(json.dumps(dict.fromkeys(("time", "command", "commit", "cpu", HTML), HTML)))
    for paths in ((tmp_path,), (tmp_path, tmp_path)):
        page = write_report(*paths).read_text()
        assert "<img src=x" not in page and page.count("alert(1)") >= 15
        # Ours alone are scripts: the policy names their hashes and nothing else, and the data is JSON, which is none.
        scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
        assert [tag for tag, _ in scripts] == [' type="application/json" id="report-data"', *[""] * 4]
        assert [script for _, script in scripts[1:]] == OUR_SCRIPTS
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in OUR_SCRIPTS
        ]
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
        assert policy == f"{POLICY} {' '.join(hashes)}"
        data = scripts[0][1]
        assert "<" not in data and HTML in json.dumps(json.loads(data), ensure_ascii=False)


def test_opening_a_run_runs_no_file_that_it_names(tmp_path: Path, capsys):
    ran = tmp_path / "ran"
    (tmp_path / "view.py").write_text(f"open({str(ran)!r}, 'w')\ndef draw(completion, sample):\n    return []\n")
    (tmp_path / "config.yaml").write_text(f"log: {{view: '{tmp_path}/view.py:draw'}}\n")
    rollouts(tmp_path)
    assert main(["view", str(tmp_path)]) == 0
    assert not ran.exists() and "With --trust it does" in (tmp_path / "report.html").read_text()
    assert main(["view", str(tmp_path), "--trust"]) == 0
    assert ran.exists()


def test_what_went_wrong_stands_at_the_top_the_gravest_first(tmp_path: Path):
    metrics(
        tmp_path,
        {**STEP, "failures/iou": 3.0},
        {"kind": "failure", "step": 1, "name": "iou", "message": "ValueError: no box"},
        {"kind": "alarm", "step": 1, "name": "constant", "message": "reward 'iou' was the same for every rollout"},
        {**STEP, "step": 2, "failures/iou": 2.0},
        {"kind": "error", "step": 2, "message": "out of memory in step 3"},
        {"kind": "resume", "step": 1, "changes": ["stages.0.steps: 2 there, 4 here"]},
    )
    (tmp_path / "set_aside.jsonl").write_text('{"id": "train:1", "reason": "no file"}\n')
    page = write_report(tmp_path).read_text()
    told = [
        "The run ended after step 2: out of memory in step 3",
        "Step 1: reward &#39;iou&#39; was the same for every rollout",
        "Reward iou failed on 5 completions, which are unscored. The first time: ValueError: no box",
        "1 broken row was set aside; see below.",
        'id="answers"',
    ]
    places = [page.index(text) for text in told]
    assert places == sorted(places) and 'class="problems"' in page
    assert "after step 1: stages.0.steps: 2 there, 4 here" in page


def test_a_run_without_problems_has_no_box(tmp_path: Path):
    metrics(tmp_path, STEP)
    assert 'role="alert"' not in write_report(tmp_path).read_text()
