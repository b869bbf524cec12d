"""pytest: a test of a plugin for each property of `mmrl_core.testing.conformance`.

    PLUGIN = "colours"


    def test_conformance(mmrl_property):
        mmrl_property()

`CASES` beside it, id of a source -> `SourceCase`s, are data sets of one row for sources whose data are not here.

mmrl-core brings this module to pytest by an entry point, so that a plugin's tests need no conftest of their own: pytest
takes `pytest_plugins` in a conftest at the root only, where a plugin in a larger repository has none. Until a test
asks for `mmrl_property` nothing of mmrl_core is imported but this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mmrl_core.testing.subject import Subject

FIXTURE = "mmrl_property"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if FIXTURE in metafunc.fixturenames:
        from mmrl_core.testing.conformance import PROPERTIES

        metafunc.parametrize(FIXTURE, PROPERTIES, indirect=True, ids=[tried.name for tried in PROPERTIES])


@pytest.fixture(scope="module")
def mmrl_subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The plugin that the test module names as PLUGIN, with its CASES."""
    import os

    from mmrl_core.plugins import load_plugins
    from mmrl_core.testing.subject import Subject

    name = getattr(request.module, "PLUGIN", None)
    if name is None:
        pytest.fail(f'{request.path.name} asks for {FIXTURE} and names no plugin. Write PLUGIN = "its_name" above.')
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cases = getattr(request.module, "CASES", None)
    return Subject(name, load_plugins(), tmp_path_factory.mktemp("conformance"), cases)


@pytest.fixture
def mmrl_property(request: pytest.FixtureRequest, mmrl_subject: Subject) -> Callable[[], None]:
    """Called, it fails with what is wrong, or skips with the reason why nothing was tried."""
    from mmrl_core.testing.conformance import property_findings

    def check() -> None:
        findings = property_findings(mmrl_subject, request.param)
        if problems := [finding.what for finding in findings if not finding.ok]:
            pytest.fail("\n".join(problems), pytrace=False)
        if findings[0].skipped:
            pytest.skip(findings[0].what)

    return check
