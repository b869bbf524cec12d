"""An error in a hook names the plugin and the hook, and a result is traced to the plugin that gave it."""

import traceback

import pluggy
import pytest

from mmrl_core import hookimpl, hookspecs
from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.plugins import attribute_hooks


class Core:
    @hookimpl
    def mmrl_prompts(self, prompts):
        if prompts == "broken":
            raise ConfigError("the core's own sentence.")
        return prompts


class Fails:
    def __init__(self, error):
        self.error = error

    @hookimpl
    def mmrl_prompts(self):
        raise self.error


class FailsAround:
    """A wrapper that fails before, or after, the inner hooks."""

    def __init__(self, error, before):
        self.error, self.before = error, before

    @hookimpl(wrapper=True)
    def mmrl_prompts(self):
        if self.before:
            raise self.error
        yield
        raise self.error


class Watches:
    """A wrapper that gives on what it gets."""

    @hookimpl(wrapper=True)
    def mmrl_prompts(self):
        return (yield)


class Doubles:
    @hookimpl(wrapper=True)
    def mmrl_prompts(self):
        return (yield) * 2


def manager_of(**plugins):
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Core(), name="core")
    for name, plugin in plugins.items():
        manager.register(plugin, name=name)
    return manager, attribute_hooks(manager, "core")


@pytest.mark.parametrize("kind", ["plain", "before", "after"])
def test_a_users_error_gets_plugin_and_hook_in_its_sentence_and_keeps_its_type(kind):
    error = PolicyError("no such thing.")
    plugin = Fails(error) if kind == "plain" else FailsAround(error, before=kind == "before")
    manager, _ = manager_of(colours=plugin, watcher=Watches())
    with pytest.raises(PolicyError, match=r"^mmrl_prompts of plugin 'colours': no such thing\.$"):
        manager.hook.mmrl_prompts(run=None, prompts=[1])


@pytest.mark.parametrize("kind", ["plain", "before", "after"])
def test_any_other_error_keeps_its_traceback_and_has_the_names_below_it(kind):
    error = KeyError("lost")
    plugin = Fails(error) if kind == "plain" else FailsAround(error, before=kind == "before")
    manager, _ = manager_of(colours=plugin, watcher=Watches())
    with pytest.raises(KeyError, match="lost") as caught:
        manager.hook.mmrl_prompts(run=None, prompts=[1])
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("raised by mmrl_prompts of plugin 'colours'") == 1 and "watcher" not in text
    assert "raise self.error" in text


def test_an_error_of_the_core_is_left_as_it_is_whoever_wraps_it():
    manager, _ = manager_of(watcher=Watches())
    with pytest.raises(ConfigError, match=r"^the core's own sentence\.$"):
        manager.hook.mmrl_prompts(run=None, prompts="broken")


def test_a_result_is_traced_to_who_changed_it_last():
    manager, answered = manager_of(watcher=Watches())
    assert manager.hook.mmrl_prompts(run=None, prompts=[1]) == [1] and answered == {"mmrl_prompts": "core"}
    manager, answered = manager_of(doubler=Doubles(), watcher=Watches())
    assert manager.hook.mmrl_prompts(run=None, prompts=[1]) == [1, 1] and answered == {"mmrl_prompts": "doubler"}
