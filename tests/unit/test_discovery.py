"""Plugin discovery, with throw-away distributions on sys.path."""

import sys
import textwrap

import pytest

from mmrl_core.config.schema import Component
from mmrl_core.errors import PluginError
from mmrl_core.plugins import discovery as plugins_module
from mmrl_core.plugins import load_plugins, presets
from mmrl_core.plugins.registry import KINDS, Registry, check_options

GOOD = """
from mmrl_core import hookimpl

@hookimpl
def mmrl_register(registry):
    registry.add("reward", "length", "{module}_rewards:length", "length of the completion", maximum=9.0)

@hookimpl
def mmrl_step_end(metrics):
    metrics["seen_by"].append("{module}")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on sys.path: `install(name, files={path: text}, entry_points={group: {name: value}})`."""
    before = set(sys.modules)
    load_plugins.cache_clear()

    def install_distribution(name, files, entry_points):
        site = tmp_path / name
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(textwrap.dedent(text))
        info = site / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\nSummary: about {name}\n")
        groups = (
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in pairs.items()) for group, pairs in entry_points.items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        monkeypatch.syspath_prepend(site)
        load_plugins.cache_clear()

    yield install_distribution
    load_plugins.cache_clear()
    for module in set(sys.modules) - before:
        if module.startswith(("probe", "mmrl_file_")):
            del sys.modules[module]


def install_probe(install, name="probe", source=GOOD, **entry_points):
    files = {
        f"{name}.py": source.replace("{module}", name),
        f"{name}_rewards.py": "def length(completions, samples): ...",
    }
    install(f"mmrl-{name}", files, {"mmrl": {name: name}, **entry_points})


def test_an_installed_plugin_is_found_with_its_origin_and_entries(install):
    install_probe(install)
    found = load_plugins()
    plugin = found.plugins["probe"]
    assert (plugin.distribution, plugin.version, plugin.summary) == ("mmrl-probe", "1.2", "about mmrl-probe")
    entry = found.registry.get("reward", "probe/length")
    assert entry.details == {"maximum": 9.0} and "probe_rewards" not in sys.modules
    assert entry.load().__name__ == "length"


def test_registered_ids_stand_under_the_plugins_own_namespace():
    registry = Registry()
    registry.registering("a").add("reward", "x", "m:x", "")
    registry.registering("b").add("reward", "x", "m:x", "")
    assert [entry.id for entry in registry.entries("reward")] == ["a/x", "b/x"]


def test_a_plugin_that_fails_to_load_is_kept_with_its_error_and_others_load(install):
    install_probe(install, "probe_broken", "import not_installed_anywhere")
    install_probe(install, "probe_good")
    found = load_plugins()
    assert found.plugins["probe_broken"].module is None
    assert "No module named 'not_installed_anywhere'" in found.plugins["probe_broken"].error
    assert found.plugins["probe_good"].error is None
    with pytest.raises(
        PluginError, match=r"plugin 'probe_broken' \(mmrl-probe_broken\) failed to load:(.|\n)*not_installed"
    ):
        found.hooks([Component(name="probe_broken")])


def test_a_failed_registration_fails_the_plugin_not_the_listing(install):
    install_probe(install, source=GOOD.replace('"reward"', '"rewrd"'))
    assert "registers a 'rewrd'; kinds: source, reward" in load_plugins().plugins["probe"].error


def test_a_misspelled_hook_is_refused_with_the_nearest_name(install):
    install_probe(install, source=GOOD.replace("mmrl_step_end", "mmrl_stepend"))
    error = load_plugins().plugins["probe"].error
    assert "implements hook 'mmrl_stepend', which does not exist. Did you mean 'mmrl_step_end'?" in error


def test_a_behaviour_with_a_misspelled_hook_is_refused_when_it_is_made(install):
    install_probe(install, source=BEHAVIOUR.replace("mmrl_save_state", "mmrl_save_stat"))
    with pytest.raises(
        PluginError, match=r"plugin 'probe/counting' implements hook 'mmrl_save_stat'.*'mmrl_save_state'"
    ):
        load_plugins().hooks([Component(name="probe/counting")])


def test_files_of_one_name_are_modules_of_their_own(tmp_path, install):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "probe_same.py").write_text(f"def where(): return {folder!r}")
    get = load_plugins().registry.get
    assert [get("reward", f"{tmp_path}/{folder}/probe_same.py:where").load()() for folder in "ab"] == ["a", "b"]


def test_a_hook_with_an_unknown_argument_is_refused(install):
    install_probe(install, source=GOOD.replace("metrics)", "metrics, runn)"))
    assert "runn" in load_plugins().plugins["probe"].error


def test_two_plugins_of_one_name_are_told_apart(install):
    install_probe(install)
    install("mmrl-other", {"probe_two.py": ""}, {"mmrl": {"probe": "probe_two"}})
    assert "already provides this plugin name" in (load_plugins().plugins["probe"].error or "")


def test_only_enabled_plugins_act_and_the_first_named_is_asked_first(install):
    install_probe(install, "probe_one")
    install_probe(install, "probe_two")
    found = load_plugins()

    def seen(enabled):
        metrics = {"seen_by": []}
        found.hooks([Component(name=name) for name in enabled]).hook.mmrl_step_end(run=None, metrics=metrics)
        return metrics["seen_by"]

    assert seen([]) == []
    assert seen(["probe_one"]) == ["probe_one"]
    assert seen(["probe_two", "probe_one"]) == ["probe_two", "probe_one"]


BEHAVIOUR = """
from mmrl_core import hookimpl

@hookimpl
def mmrl_register(registry):
    registry.add("behaviour", "counting", "probe:Counting", "counts steps")
    registry.add("behaviour", "idle", "probe:Idle", "does nothing")

class Counting:
    def __init__(self, *, by=1):
        self.by, self.count = by, 0

    @hookimpl
    def mmrl_step_end(self, metrics):
        self.count += self.by
        metrics["seen_by"].append(self.count)

    @hookimpl
    def mmrl_save_state(self):
        return self.count

class Idle:
    def mmrl_step_end(self): ...
"""


def test_a_behaviour_is_an_object_of_its_run_made_with_its_options(install):
    install_probe(install, source=BEHAVIOUR)
    found, metrics = load_plugins(), {"seen_by": []}
    runs = [found.hooks([Component(name="probe/counting", by=by)]) for by in (1, 10)]
    for run in (runs[0], runs[1], runs[1]):
        run.hook.mmrl_step_end(run=None, metrics=metrics)
    assert metrics["seen_by"] == [1, 10, 20]
    (saved,) = runs[1].hook.mmrl_save_state.get_hookimpls()
    assert (saved.plugin_name, saved.function()) == ("probe/counting", 20)


def test_behaviours_stand_in_the_order_of_the_config_and_may_lie_in_a_file(install, tmp_path):
    install_probe(install, "probe_one")
    (tmp_path / "probe_file.py").write_text(BEHAVIOUR)
    name = f"{tmp_path}/probe_file.py:Counting"
    metrics = {"seen_by": []}
    manager = load_plugins().hooks([Component(name=name, by=2), Component(name="probe_one")])
    manager.hook.mmrl_step_end(run=None, metrics=metrics)
    assert metrics["seen_by"] == [2, "probe_one"]
    assert [impl.plugin_name for impl in manager.hook.mmrl_save_state.get_hookimpls()] == [name]


def test_a_behaviour_without_hooks_or_with_an_option_that_it_has_not_is_refused(install):
    install_probe(install, source=BEHAVIOUR)
    with pytest.raises(PluginError, match=r"behaviour 'probe/idle' has no hook: mark its methods with @hookimpl"):
        load_plugins().hooks([Component(name="probe/idle")])
    with pytest.raises(PluginError, match=r"'probe/counting': no option 'bye'\. Did you mean 'by'\? Options: by\."):
        load_plugins().hooks([Component(name="probe/counting", bye=3)])
    with pytest.raises(PluginError, match=r"no installed plugin provides behaviour 'probe/countin'. Did you mean"):
        load_plugins().hooks([Component(name="probe/countin")])


def test_tasks_share_the_namespace_of_their_distribution(install):
    files = {"probe.py": "", "probe_tasks/__init__.py": "", "probe_tasks/point.yaml": "# Point at it.\nname: point\n"}
    groups = {"mmrl": {"probe": "probe"}, "mmrl.tasks": {"point": "probe_tasks", "absent": "probe_tasks"}}
    install("mmrl-probe-distribution", files, groups)
    found = load_plugins()
    assert found.task("probe/point").path.read_text().startswith("# Point at it.")
    with pytest.raises(PluginError, match=r"has no absent\.yaml"):
        _ = found.task("probe/absent").path
    with pytest.raises(PluginError, match=r"no task 'probe/pont'.*Did you mean 'probe/point'"):
        found.task("probe/pont")


def test_a_task_of_a_failed_plugin_says_why(install):
    install_probe(install, source="raise RuntimeError('boom')")
    with pytest.raises(PluginError, match=r"plugin 'probe' failed to load:(.|\n)*boom"):
        load_plugins().task("probe/some_long_name_like_no_other")


def test_unknown_names_get_the_nearest_or_what_to_install():
    registry = load_plugins().registry
    with pytest.raises(PluginError, match=r"no installed plugin provides loss 'cliped'. Did you mean 'clipped'"):
        registry.get("loss", "cliped")
    with pytest.raises(PluginError, match=r"\(installed: .*Try: pip install mmrl-no-such-plugin"):
        registry.get("reward", "no_such_plugin/zzzzzz")
    with pytest.raises(PluginError, match=r"plugin 'no_such_one' is not installed.*pip install mmrl-no-such-one"):
        load_plugins().require("no_such_one")


def test_core_names_stand_with_or_without_namespace():
    registry = load_plugins().registry
    assert registry.get("loss", "clipped") is registry.get("loss", "core/clipped")


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_of_the_core_can_be_imported(kind):
    for entry in load_plugins().registry.entries(kind):
        if entry.id.startswith("core/"):
            assert callable(entry.load()), entry.id


def test_an_id_is_taken_once():
    registry = Registry().registering("a")
    registry.add("reward", "x", "m:x", "")
    with pytest.raises(PluginError, match="registers reward 'a/x' twice"):
        registry.add("reward", "x", "m:y", "")


def test_an_entry_whose_target_is_gone_names_itself_and_the_cause():
    registry = Registry().registering("a")
    registry.add("reward", "x", "mmrl_core.errors:Absent", "")
    with pytest.raises(PluginError, match=r"reward 'a/x' \(mmrl_core\.errors:Absent\) cannot be imported: .*Absent"):
        registry.get("reward", "a/x").load()


def test_a_function_of_a_file_is_an_entry(tmp_path, monkeypatch, install):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe_file.py").write_text("def length(completions, samples): return [len(c) for c in completions]\n")
    registry = load_plugins().registry
    entry = registry.get("reward", "probe_file.py:length")
    assert entry.load()(["abc"], [{}]) == [3]
    assert registry.get("reward", f"{tmp_path}/probe_file.py:length").load() is entry.load()
    with pytest.raises(PluginError, match=r"probe_file\.py has no 'width'"):
        registry.get("reward", "probe_file.py:width")
    with pytest.raises(PluginError, match=r"there is no file absent\.py"):
        registry.get("reward", "absent.py:length")
    (tmp_path / "probe_bad.py").write_text("1 / 0")
    with pytest.raises(PluginError, match=r"probe_bad\.py cannot be imported: division by zero"):
        registry.get("reward", "probe_bad.py:length")


def test_presets_are_found_in_the_wheel_too(tmp_path, monkeypatch):
    assert "algorithm/dapo" in presets()
    (tmp_path / "mmrl_core/configs/model").mkdir(parents=True)
    (tmp_path / "mmrl_core/configs/model/small.yaml").write_text("model: {}")
    monkeypatch.setattr(plugins_module, "__file__", str(tmp_path / "mmrl_core/plugins/discovery.py"))
    presets.cache_clear()
    try:
        assert list(presets()) == ["model/small"]
    finally:
        presets.cache_clear()


# Calling entries

CALLS = """
def scaled(completions, samples, *, scale: float = 1.0, rollouts=None):
    return completions, samples, scale, rollouts

def plain(completions, samples):
    return completions, samples

class Base:
    def __init__(self, path, *, device="cpu", scale: float = 1.0):
        self.made = path, device, scale

class Derived(Base):
    def __init__(self, *arguments, times=1, **options):
        super().__init__(*arguments, **options)
        self.times = times
"""


@pytest.fixture
def calls(tmp_path, install):
    (tmp_path / "probe_calls.py").write_text(CALLS)
    registry = load_plugins().registry
    return lambda kind, name: registry.get(kind, f"{tmp_path}/probe_calls.py:{name}")


def test_a_call_passes_what_the_run_gives_to_those_that_take_it(calls):
    given = {"rollouts": ["r"], "later": 1}
    assert calls("reward", "scaled").call("c", "s", options={"scale": 2.0}, **given) == ("c", "s", 2.0, ["r"])
    assert calls("reward", "plain").call("c", "s", options={}, **given) == ("c", "s")


def test_a_class_that_passes_everything_on_takes_what_its_base_takes(calls):
    entry = calls("policy", "Derived")
    made = entry.call("p", options={"scale": 3.0, "times": 2}, device="gpu", engine=None)
    assert (made.made, made.times) == (("p", "gpu", 3.0), 2)
    assert list(entry.options()) == ["scale", "times"]
    with pytest.raises(PluginError, match=r"no option 'scal'\. Did you mean 'scale'\? Options: scale, times\."):
        entry.call("p", options={"scal": 3.0})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scal": 3}, r"no option 'scal'\. Did you mean 'scale'\? Options: scale\."),
        ({"scale": "high"}, r"option 'scale' should be a number; got 'high'\."),
        ({"rollouts": []}, r"'rollouts' is passed by the run and cannot be set\. Options: scale\."),
    ],
)
def test_a_wrong_option_is_refused_in_the_words_of_the_config(calls, options, problem):
    entry = calls("reward", "scaled")
    with pytest.raises(PluginError, match=f"reward '.*probe_calls.py:scaled': {problem}$"):
        entry.call([], [], options=options)
    with pytest.raises(PluginError, match=f"^reward 'mine': {problem}$"):
        check_options("reward", "mine", entry.load(), options)


def test_options_are_printed_readably(calls):
    (option,) = calls("reward", "scaled").options().values()
    assert str(option) == "scale: float = 1.0"
    lora = load_plugins().registry.get("policy", "language_model").options()["lora"]
    assert str(lora) == "lora: LoraConfig | None = None" and lora.description.startswith("train LoRA adapters")
    for kind in KINDS:
        for entry in load_plugins().registry.entries(kind):
            assert " at 0x" not in " ".join(map(str, entry.options().values())), entry.id
