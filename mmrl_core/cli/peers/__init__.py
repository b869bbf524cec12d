"""Configs of TRL, verl, EasyR1 and ms-swift as tasks: what keys are called here, and how values translate."""
