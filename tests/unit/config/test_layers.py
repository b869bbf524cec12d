"""Properties of reading configs as a user sees them: layers of short forms, plugins that add up, errors in one go."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmrl_core.config import dump_config, load_config
from mmrl_core.errors import ConfigError, PluginError
from mmrl_core.plugins import KINDS, load_plugins

BEHAVIOUR = """
from mmrl_core import hookimpl

class Note:
    def __init__(self, text: str = "a", times: int = 1):
        self.text, self.times = text, times

    @hookimpl
    def mmrl_step_end(self):
        pass

class Other(Note):
    pass
"""

COMPONENTS = """
from pydantic import BaseModel, ConfigDict, Field, field_validator

class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = Field(1, ge=1)

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    scale: float = Field(1.0, gt=0, description="what it multiplies")
    sign: str = "+"

    @field_validator("sign")
    @classmethod
    def _sign(cls, value):
        if value not in "+-":
            raise ValueError("a sign is + or -.")
        return value

def declared(completions, samples, **options):
    return [0.0] * len(completions)

declared.Options = Options

def plain(completions, samples, *, scale: float = 1.0, rollouts=None):
    return [scale] * len(completions)

def needs(completions, samples, *, target: str):
    return [0.0] * len(completions)
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(COMPONENTS)
    Path("notes.py").write_text(BEHAVIOUR)

    def write_file(text, name="run.yaml"):
        Path(name).write_text(text)
        return name

    return write_file


def lines(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def policy(path, *overrides):
    return load_config(path, overrides).model.policy


# short forms


def test_a_short_form_becomes_an_option_of_the_policy(write):
    made = policy(write("name: x\nmodel: {lora: {rank: 4}, freeze: [vision]}"))
    assert made.name == "language_model"
    assert made.options["lora"]["rank"] == 4 and made.options["freeze"] == ["vision"]


def test_a_policy_without_a_name_means_the_default_one(write):
    made = policy(write("name: x\nmodel: {policy: {lora: {rank: 4}}}"))
    assert made.name == "language_model" and made.options["lora"]["rank"] == 4


FORMS = ("{precision: %s}", "{policy: {precision: %s}}", "{policy: {name: core/language_model, precision: %s}}")


@pytest.mark.parametrize("base", FORMS)
@pytest.mark.parametrize("over", FORMS)
def test_the_last_layer_wins_whichever_form_it_uses(write, base, over):
    write("name: x\nmodel: " + base % "float32", "base.yaml")
    path = write("extends: base.yaml\nname: x\nmodel: " + over % "bfloat16")
    assert policy(path).options["precision"] == "bfloat16"


@pytest.mark.parametrize("key", ["model.precision", "model.policy.precision"])
@pytest.mark.parametrize("base", ["{precision: float32}", "{policy: {precision: float32}}"])
def test_the_command_line_wins_whichever_form_it_uses(write, key, base):
    assert policy(write(f"name: x\nmodel: {base}"), f"{key}=bfloat16").options["precision"] == "bfloat16"


def test_nested_short_forms_merge_over_layers_and_the_command_line(write):
    write("name: x\nmodel: {policy: {lora: {rank: 4, alpha: 8}}}", "base.yaml")
    path = write("extends: base.yaml\nname: x\nmodel: {lora: {alpha: 16}}")
    lora = policy(path, "model.lora.rank=8").options["lora"]
    assert (lora["rank"], lora["alpha"]) == (8, 16)
    assert policy(write("name: x"), "model.lora.rank=8").options["lora"]["rank"] == 8


def test_faults_of_short_forms_are_reported_as_written_with_file_and_line(write):
    found = lines(write("name: x\nmodel:\n  lora:\n    rank: none\n    alpah: 2\n  precision: flaot32\n"))
    text = "\n".join(found)
    assert len(found) == 3, found
    assert any(line.startswith("run.yaml:4: ") and "model.lora.rank" in line for line in found), text
    assert any(line.startswith("run.yaml:5: ") and "alpha" in line for line in found), text
    assert any(line.startswith("run.yaml:6: ") and "model.precision" in line and "float32" in line for line in found), (
        text
    )
    assert "policy" not in text, text


def test_faults_of_long_forms_are_reported_as_written(write):
    found = lines(write("name: x\nmodel:\n  policy:\n    lora:\n      rnak: 1\n    precison: float32\n"))
    text = "\n".join(found)
    assert any(line.startswith("run.yaml:5: ") and "rank" in line for line in found), text
    assert any(line.startswith("run.yaml:6: ") and "'precision'" in line for line in found), text


def test_an_unknown_key_of_model_still_finds_the_short_form(write):
    (line,) = lines(write("name: x\nmodel:\n  loar: {rank: 4}\n"))
    assert line.startswith("run.yaml:3: ") and "'lora'" in line


def test_a_short_form_of_another_policy_is_refused_with_that_policys_options(write):
    found = lines(write("name: x\nmodel:\n  policy: find/ddpo\n  min_pixels: 4\n"))
    assert any(line.startswith("run.yaml:4: ") and "min_pixels" in line and "find/ddpo" in line for line in found), (
        found
    )
    assert not any("model.policy.min_pixels" in line and "no option" in line for line in found), found


def test_a_short_form_of_another_policy_on_the_command_line_is_refused(write):
    found = lines(write("name: x\nmodel: {policy: find/ddpo}\n"), "model.min_pixels=4")
    assert any("min_pixels" in line for line in found), found


def test_another_policy_replaces_the_short_forms_of_its_base(write):
    write("name: x\nmodel: {min_pixels: 3136, freeze: [vision]}", "base.yaml")
    made = policy(write("extends: base.yaml\nname: x\nmodel: {policy: find/ddpo}"))
    assert made.name == "find/ddpo" and "min_pixels" not in made.options and "freeze" not in made.options


def test_the_same_key_in_both_forms_of_one_file_is_refused(write):
    found = lines(write("name: x\nmodel:\n  precision: float32\n  policy: {precision: bfloat16}\n"))
    assert any("precision" in line for line in found)


def test_the_dumped_config_has_the_options_under_the_policy_and_reads_back(write):
    config = load_config(write("name: x\nmodel: {lora: {rank: 4}, precision: float32}"))
    text = dump_config(config)
    again = load_config(write(text, "again.yaml"))
    assert again == config and again.model.policy.options["lora"] == config.model.policy.options["lora"]
    assert set(config.model_dump()["model"]) == {"path", "build", "policy", "revision"}


def test_null_switches_a_short_form_off_again(write):
    write("name: x\nmodel: {lora: {rank: 4}}", "base.yaml")
    path = write("extends: base.yaml\nname: x\nmodel: {lora: null}")
    assert policy(path).options["lora"] is None
    assert policy(write("name: x\nmodel: {lora: {rank: 4}}"), "model.lora=null").options["lora"] is None


def test_where_names_the_line_of_a_short_form(write):
    config = load_config(write("name: x\nmodel:\n  lora:\n    rank: 4\n"))
    assert config.where("model", "policy", "lora", "rank").startswith("run.yaml:4")


def test_a_model_or_policy_that_is_no_mapping_is_refused_with_its_line(write):
    for model in ("5", "[a]", "{policy: [a], lora: {rank: 2}}", "{policy: null, lora: {rank: 2}}"):
        found = lines(write(f"name: x\nmodel: {model}\n"))
        assert any(line.startswith("run.yaml:2: 'model") and "should be a mapping" in line for line in found), found


# plugins


def names(path, *overrides):
    return [(item.name, item.options) for item in load_config(path, overrides).plugins]


def test_plugins_add_up_over_extends_and_a_repeated_one_changes_its_options(write):
    write("plugins: [{name: 'notes.py:Note', text: b, times: 2}]", "one.yaml")
    write("plugins: ['notes.py:Other']", "two.yaml")
    path = write("extends: [one.yaml, two.yaml]\nname: x\nplugins: [{name: 'notes.py:Note', text: c}]")
    assert names(path) == [("notes.py:Note", {"text": "c", "times": 2}), ("notes.py:Other", {})]


def test_plugins_of_the_command_line_add_up(write):
    path = write("name: x\nplugins: ['notes.py:Note']")
    assert [n for n, _ in names(path, "plugins=['notes.py:Other']")] == ["notes.py:Note", "notes.py:Other"]
    assert names(path, "plugins=[{name: 'notes.py:Note', times: 3}]") == [("notes.py:Note", {"times": 3})]


def test_a_plugin_can_be_taken_out_and_put_in_again(write):
    write("plugins: [{name: 'notes.py:Note', times: 2}]", "one.yaml")
    path = write("extends: one.yaml\nname: x\nplugins: [{name: 'notes.py:Note', enabled: false}]")
    assert names(path) == []
    assert names(path, "plugins=[{name: 'notes.py:Note', enabled: true}]") == [("notes.py:Note", {"times": 2})]


def test_a_plugin_twice_in_one_file_is_an_error_with_line(write):
    found = lines(write("name: x\nplugins:\n  - notes.py:Note\n  - notes.py:Note\n"))
    assert len(found) == 1 and found[0].startswith("run.yaml:4: "), found


def test_a_plugin_twice_in_a_base_is_an_error_too(write):
    write("plugins: [gui, gui]", "base.yaml")
    assert lines(write("extends: base.yaml\nname: x\nplugins: [find]"))


def test_a_twice_named_plugin_whose_name_the_base_has_is_an_error_too(write):
    write("plugins: ['notes.py:Note']", "base.yaml")
    assert lines(write("extends: base.yaml\nname: x\nplugins: ['notes.py:Note', 'notes.py:Note']"))


def test_enabled_that_is_no_bool_is_refused(write):
    (line,) = lines(write("name: x\nplugins: [{name: 'notes.py:Note', enabled: no}]"))
    assert "enabled" in line


# errors in one go


def test_yaml_schema_components_and_options_are_reported_together(write):
    found = lines(
        write(
            "name: x\nseed: -1\nseeed: 2\nrewards:\n  - parts.py:missing\n  - {name: 'parts.py:plain', scael: 2}\n"
            "  - {name: 'parts.py:needs'}\n  - {name: 'parts.py:plain', scale: big, label: b}\n"
            "algorithm: {loss: clippd}\nmodel: {path: 3}\nname: y\n"
        )
    )
    text = "\n".join(found)
    for line in (2, 3, 5, 6, 7, 8, 9, 10):
        assert f"run.yaml:{line}: " in text, (line, text)
    assert "'scale'" in text and "clipped" in text


def test_a_yaml_fault_and_others_are_reported_together(write):
    found = lines(write("name: x\nseed: -1\nname: y\nalgorithm: {loss: clippd}\n"))
    text = "\n".join(found)
    assert "run.yaml:2:" in text and "run.yaml:3:" in text and "run.yaml:4:" in text, text


def test_an_option_that_the_run_passes_cannot_be_set(write):
    found = lines(write("name: x\nrewards: [{name: 'parts.py:plain', rollouts: 1}]"))
    assert len(found) == 1 and "rollouts" in found[0], found


# Options


def test_declared_options_are_checked_with_nested_did_you_mean_and_line(write):
    found = lines(
        write(
            "name: x\nrewards:\n  - name: parts.py:declared\n    inner:\n      detph: 2\n    scale: -1\n    sing: '+'\n"
        )
    )
    text = "\n".join(found)
    assert len(found) == 3, text
    assert any(line.startswith("run.yaml:5: ") and "'depth'" in line for line in found), text
    assert any(line.startswith("run.yaml:6: ") and "greater than 0" in line for line in found), text
    assert any(line.startswith("run.yaml:7: ") and "'sign'" in line for line in found), text


def test_a_validator_of_declared_options_is_reported_at_its_line(write):
    (line,) = lines(write("name: x\nrewards:\n  - name: parts.py:declared\n    sign: '*'\n"))
    assert line.startswith("run.yaml:4: ") and "a sign is + or -." in line


def test_declared_bounds_of_nested_values_are_reported_at_their_line(write):
    (line,) = lines(write("name: x\nrewards:\n  - name: parts.py:declared\n    inner:\n      depth: 0\n"))
    assert line.startswith("run.yaml:5: ") and "at least 1" in line


# calls


def entry(kind, name):
    return load_plugins().registry.get(kind, name)


def test_a_call_passes_what_the_core_gives_only_to_those_who_take_it(write):
    taking, not_taking = entry("reward", "parts.py:plain"), entry("reward", "parts.py:needs")
    assert taking.call(["a"], [{}], options={"scale": 2.0}, rollouts=[1]) == [2.0]
    assert not_taking.call(["a"], [{}], options={"target": "t"}, rollouts=[1]) == [0.0]


@pytest.mark.parametrize("options", [{}, {"target": 3}, {"target": "a", "tagret": "b"}, {"target": "a", "rollouts": 1}])
def test_a_call_refuses_what_reading_refuses_in_the_same_words(write, options):
    written = "".join(f", {key}: {value}" for key, value in options.items())
    read = lines(write(f"name: x\nrewards: [{{name: 'parts.py:needs'{written}}}]"))
    with pytest.raises(PluginError) as caught:
        entry("reward", "parts.py:needs").call(["a"], [{}], options=options)
    called = str(caught.value).splitlines()
    assert [sentence(line) for line in read] == [sentence(line) for line in called]


def sentence(line):
    """Without the place, and without the list of options: a file has `weight` and the like beside them."""
    return line[line.index("reward 'parts.py:needs'") :].partition(" Options:")[0]


def test_kinds_describe_themselves():
    for name, kind in KINDS.items():
        assert kind.name == name and kind.plural and kind.description
    assert KINDS["policy"].positional == 1 and set(KINDS["policy"].given) == {"device", "engine", "revision"}


def test_options_of_every_installed_entry_are_printable():
    for kind in KINDS:
        for made in load_plugins().registry.entries(kind):
            for option in made.options().values():
                assert " at 0x" not in str(option) and "<function" not in str(option), (made.id, str(option))


# lightness, discovery


def test_plugins_and_the_face_of_config_load_no_torch():
    code = (
        "import sys; from mmrl_core.plugins import load_plugins; load_plugins();"
        "from mmrl_core.config import load_config;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plugins_register_without_pydantic():
    code = (
        "import sys; from mmrl_core.plugins import load_plugins; load_plugins(); assert 'pydantic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_files_of_one_name_are_two_modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, value in (("a", 1), ("b", 2)):
        Path(folder).mkdir()
        Path(folder, "r.py").write_text(f"def f(completions, samples):\n    return [{value}]\n")
    assert [entry("reward", f"{folder}/r.py:f").call([""], [{}], options={}) for folder in "ab"] == [[1], [2]]
