"""Attribution of hooks: an error in a plugin's hook names the plugin, and so does the message about a wrong result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any

import pluggy

from mmrl_core.errors import MMRLError
from mmrl_core.support import blame, blamed


def attribute_hooks(manager: pluggy.PluginManager, core: str) -> dict[str, str]:
    """Make every implementation registered so far name its plugin when it fails.

    An `MMRLError` gets the plugin and the hook in front of its message; any other exception gets them as a note below
    its traceback. What a hook raises on behalf of an inner one, as wrappers do, is attributed to the inner one.

    Args:
        manager: its plugins are registered.
        core: name of the core's own plugin, whose errors are left as they are.

    Returns:
        Hook -> the plugin that gave or changed the last result; filled as hooks are called.
    """
    answered: dict[str, str] = {}
    for name in sorted(hook for hook in vars(manager.hook) if not hook.startswith("_")):
        for implementation in getattr(manager.hook, name).get_hookimpls():
            call = _Call(name, implementation.plugin_name, answered, is_core=implementation.plugin_name == core)
            wrap = call.around if inspect.isgeneratorfunction(implementation.function) else call.plain
            implementation.function = wrap(implementation.function)
    return answered


class _Call:
    """One implementation of a hook."""

    def __init__(self, hook: str, plugin: str, answered: dict[str, str], is_core: bool) -> None:
        self._hook, self._plugin, self._answered, self._is_core = hook, plugin, answered, is_core

    def plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            try:
                result = function(*arguments, **named)
            except Exception as error:
                raise self._attributed(error) from error.__cause__
            self._note(result)
            return result

        return called

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The call of a wrapper: a generator that yields once, gets the inner result or error, returns the new one."""

        def called(*arguments: Any) -> Generator[None, Any, Any]:
            wrapper = function(*arguments)
            try:
                next(wrapper)
            except Exception as error:
                raise self._attributed(error) from error.__cause__
            try:
                inner = yield
            except BaseException as error:
                failed = error
                return self._finished(lambda: wrapper.throw(failed), None)
            return self._finished(lambda: wrapper.send(inner), inner)

        return called

    def _finished(self, resume: Callable[[], Any], inner: Any) -> Any:
        try:
            resume()
        except StopIteration as stop:
            if stop.value is not inner:
                self._note(stop.value)
            return stop.value
        except Exception as error:
            raise self._attributed(error) from error.__cause__
        raise self._attributed(MMRLError("a wrapper yields once, and this one yielded again."))

    def _note(self, result: Any) -> None:
        if result is not None:
            self._answered[self._hook] = self._plugin

    def _attributed(self, error: Exception) -> Exception:
        if blamed(error) is not None:
            return error
        source = None if self._is_core else f"{self._hook} of plugin {self._plugin!r}"
        if source is not None and isinstance(error, MMRLError):
            named = type(error)(f"{source}: {error}")
            named.__traceback__, named.__cause__ = error.__traceback__, error.__cause__
            error = named
        blame(error, source, error.__traceback__)
        return error
