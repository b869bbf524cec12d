"""What a task file may cost, since it may come from a stranger. Each limit is an error of one sentence."""

MAX_BYTES = 1_000_000
"""Of a file. The longest config of a plugin has 3,000."""

MAX_DEPTH = 50
"""Of values in values. The schema has nine levels; the rest is for options of components."""

MAX_VALUES = 30_000
"""Of a text with its aliases written out, keys not counted. A resolved run has some hundred a stage."""

MAX_CHARACTERS = 2 * MAX_BYTES
"""Of all keys and texts, aliases written out."""

MAX_KEY = 500
"""Characters of a key, such as a regular expression of `optimizer.lr_scale`."""

MAX_NUMBER = 100
"""Characters of a number. Python cannot print one of more than 4,300 digits."""

MAX_EXTENDS = 50
"""Files that one file extends, and files that extend one another."""

MAX_SECTIONS = 3_000
"""Stages times parts of the mixture that they share."""

MAX_FILLED = 60_000
"""Values of a config in which stages and parts have what they inherit."""
