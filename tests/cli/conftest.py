"""What tests of commands share."""

import shutil

import pytest


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """In the folder of a module's runs, without what was exported there."""
    monkeypatch.chdir(folder)
    for made in folder.glob("exported*"):
        shutil.rmtree(made)
    capsys.readouterr()
    return folder
