"""Task files from strangers: what is too large, too deep or no text is one sentence, at once and in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmrl_core.config import load_config
from mmrl_core.config.limits import MAX_BYTES, MAX_DEPTH
from mmrl_core.errors import ConfigError


def laughs(levels: int) -> str:
    """Nine aliases of nine aliases of ...: 9 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "name: x\n" + "\n".join(lines) + "\n"


TOO_MANY = "a config may have 30,000 values and 2,000,000 characters with its aliases written out"
FILES: dict[str, tuple[str | bytes, str]] = {
    "a million by aliases": (laughs(6), TOO_MANY),
    "a thousand million by aliases": (laughs(9), TOO_MANY),
    "mappings by aliases": (laughs(9).replace("[", "{k: [").replace("]", "]}"), TOO_MANY),
    "a long text, 2,000 times": (f"name: &n {'x' * 900_000}\nl: [{', '.join(['*n'] * 2000)}]\n", TOO_MANY),
    "a key of 100,000 characters": (f"name: x\na:\n  ? {'k' * 100_000}\n  : 1\n", "got 100,000 characters that begin"),
    "a long key": (f"name: x\n{'k' * 700}: 1\n", "run.yaml:1: a key is a word; got 700 characters that begin 'kkkk"),
    "lists in lists": ("name: x\na: " + "[" * 1000, f"run.yaml:2: values are nested more than {MAX_DEPTH} deep here"),
    "blocks in blocks": (
        "".join(f"{' ' * i}a:\n" for i in range(1000)),
        f"run.yaml:50: values are nested more than {MAX_DEPTH}",
    ),
    "lists by dashes": ("- " * 100_000, f"nested more than {MAX_DEPTH} deep"),
    "50,000 values": ("name: x\n" + "".join(f"k{i}: {i}\n" for i in range(50_000)), "a config may have 30,000 values"),
    "2 MB": ("name: x\n#" + "x" * 2_000_000, f"the file has more than {MAX_BYTES:,} bytes"),
    "latin 1": (
        "name: x\ndescription: Grüße\n".encode("latin-1"),
        "run.yaml:2: byte 24 of the file, 0xfc, is no UTF-8. Save",
    ),
    "bytes": (bytes(range(256)) * 100, "is no UTF-8. Save it as UTF-8."),
    "UTF-16": ("name: x\n".encode("utf-16"), "run.yaml: the file is UTF-16. Save it as UTF-8."),
    "UTF-32": ("name: x\n".encode("utf-32"), "the file is UTF-16. Save it as UTF-8."),
    "zero bytes": (b"\0" * 1000, "run.yaml:1: this is not YAML: unacceptable character #x0000"),
    "a number of 5,000 digits": (
        f"name: x\nseed: 0x{'f' * 5000}\n",
        "run.yaml:2: '0xffffffffffffffffff'... has 5,002 characters, too many for the type int.",
    ),
    "a decimal of 5,000 digits": (f"name: x\nseed: {'9' * 5000}\n", "has 5,000 characters, too many for the type int"),
    "a float of 5,000 digits": (
        f"name: x\nseed: 0.{'9' * 5000}\n",
        "has 5,002 characters, too many for the type float",
    ),
    "half a pair in a value": (
        'name: x\ndescription: "\\ud800"\n',
        "run.yaml:2: the text holds half of a surrogate pair",
    ),
    "half a pair in a key": (
        'name: x\n"\\udfff": 1\n',
        "the text holds half of a surrogate pair, which is no character.",
    ),
    "an alias of itself": ("name: x\na: &a [*a]\n", "run.yaml:2: an alias refers to a value that it is part of."),
    "an alias of nothing": ("name: x\na: *b\n", "run.yaml:2: this is not YAML: found undefined alias 'b'"),
    "two documents": ("name: x\n---\nname: y\n", "run.yaml:2: this is not YAML"),
    "a tag": ("name: !!python/object/apply:os.system [ls]\n", "run.yaml:1: 'name' should be text; got a list of 1."),
    "5,000 stages": (
        "name: x\nstages:\n" + "- {kind: sft, steps: 1}\n" * 5_000,
        "run.yaml:2: 5,000 stages and parts of mixtures are more than 3,000.",
    ),
    "stages times parts": (
        f"name: x\nmixture: [{'{name: a}, ' * 200}]\nstages: [{'{kind: sft, steps: 1}, ' * 200}]\n",
        "run.yaml:3: 40,200 stages and parts",
    ),
    "much for many to inherit": (
        f"name: x\nprompt: {{images: [{'x, ' * 2000}]}}\nstages: [{'{kind: sft, steps: 1}, ' * 200}]\n",
        "has more than 60,000 values",
    ),
    "a file extends 60": (
        "name: x\nextends: [" + "algorithm/dapo, " * 60 + "]\n",
        "run.yaml:2: extends lists 60 files, and 50 are the most.",
    ),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(path: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    return str(refused.value)


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_is_one_sentence(case, here):
    content, said = FILES[case]
    Path("run.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    (line,) = refusal("run.yaml").splitlines()
    assert said in line and line.startswith("run.yaml") and len(line) < 400


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_of_them_take_little_memory(here):
    for number, (content, _) in enumerate(FILES.values()):
        Path(f"{number}.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    code = (
        "import re, sys\n"
        "from mmrl_core.config import load_config\nfrom mmrl_core.errors import MMRLError\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_config(name); raise SystemExit(name)\n"
        "    except MMRLError: pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    files = [f"{number}.yaml" for number in range(len(FILES))]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 250_000, "kB, of which the interpreter with pydantic has 60,000"


def test_many_unknown_keys_are_counted_and_not_all_explained(here):
    Path("run.yaml").write_text("name: x\n" + "".join(f"k{i}: {i}\n" for i in range(9_000)))
    *lines, last = refusal("run.yaml").splitlines()
    assert lines[0].startswith("run.yaml:2: unknown key 'k0'.") and len(lines) == 40
    assert last == "... and 21 more problems."
    Path("run.yaml").write_text(
        "name: x\nalgorithm: {loss: {name: clipped, " + ", ".join(f"k{i}: 1" for i in range(9_000)) + "}}\n"
    )
    assert len(refusal("run.yaml").splitlines()) == 41


def test_one_cause_is_one_line(here):
    stages = "".join("- {kind: sft, steps: 1, optimizer: {schedule: cosin}}\n" for _ in range(34))
    Path("run.yaml").write_text(f"name: x\nstages:\n{stages}")
    (line,) = refusal("run.yaml").splitlines()
    assert line.startswith(
        "run.yaml:3: 'stages.0.optimizer.schedule' should be 'constant', 'linear' or 'cosine'; got 'cosin'."
    )
    assert line.endswith(" And 33 more, at run.yaml:4, run.yaml:5, run.yaml:6, ...")


def test_a_tree_of_extends_is_read_once_a_file(here):
    """Eleven files, each of which extends the next three times: 3 ** 11 readings by the letter."""
    for level in range(11):
        Path(f"{level}.yaml").write_text(
            f"extends: [{', '.join([f'{level + 1}.yaml'] * 3)}]\noptimizer: {{warmup_steps: {level}}}\n"
        )
    Path("11.yaml").write_text("name: deep\nseed: 7\n")
    config = load_config("0.yaml")
    assert (config.name, config.seed, config.optimizer.warmup_steps) == ("deep", 7, 0)


def test_a_chain_of_extends_has_an_end(here):
    for level in range(120):
        Path(f"{level}.yaml").write_text(f"extends: {level + 1}.yaml\n")
    Path("120.yaml").write_text("name: deep\n")
    (line,) = refusal("0.yaml").splitlines()
    assert line == "50.yaml:1: extends goes on for 50 files, and 50 are the most."
    assert load_config("100.yaml").name == "deep"


def test_a_byte_order_mark_is_no_part_of_the_first_key(here):
    Path("run.yaml").write_bytes("name: größer\n".encode("utf-8-sig"))
    assert load_config("run.yaml").name == "größer"


@pytest.mark.skipif(sys.platform != "linux", reason="a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_said(here):
    Path("run.yaml").symlink_to("/proc/self/mem")
    (line,) = refusal("run.yaml").splitlines()
    assert line.endswith("the file cannot be read: Input/output error.")


@pytest.mark.parametrize(
    "override",
    ["description=[[" + "[" * 1000, "seed=0x" + "f" * 5000, 'description="\\ud800"', "description=" + "x" * 3_000_000],
)
def test_a_hostile_override_is_one_sentence(override, here):
    Path("run.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError) as refused:
        load_config("run.yaml", [override])
    (line,) = str(refused.value).splitlines()
    assert line.startswith("command line: ") and len(line) < 400
