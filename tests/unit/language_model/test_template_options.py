"""Which variables a chat template reads: options of a prompt are held against them."""

import pytest

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.template_options import STANDARD, check_options, variables_of
from mmrl_core.types import Prompt

TEMPLATES = {
    "{% for message in messages %}{{ message.content }}{{ loop.index }}{% endfor %}": [],
    "{{ bos_token }}{% if add_generation_prompt %}{{ raise_exception('x') }}{{ strftime_now('%Y') }}{% endif %}": [],
    "{% if enable_thinking is defined and enable_thinking is false %}x{% endif %}": ["enable_thinking"],
    "{% if not thinking is defined %}{% set thinking = true %}{% endif %}{{ thinking }}": ["thinking"],
    "{% set thinking = true %}{{ thinking }}": [],
    "{% set thinking = thinking | default(true) %}{{ thinking }}": ["thinking"],
    # As Gemma's: set on each way before it is read.
    "{% if messages[0] %}{% set first, rest = 'x', messages[1:] %}{% else %}{% set first, rest = '', messages %}"
    "{% endif %}{% for message in rest %}{{ first }}{% endfor %}": [],
    "{% if a %}{% set x = 1 %}{% elif b %}{% set x = 2 %}{% else %}{% set x = 3 %}{% endif %}{{ x }}": ["a", "b"],
    "{% if a %}{% set x = 1 %}{% elif b %}{{ y }}{% else %}{% set x = 3 %}{% endif %}{{ x }}": ["a", "b", "x", "y"],
    "{% macro show() %}{{ mark() }}{% endmacro %}{% macro mark() %}-{% endmacro %}{{ show() }}": [],
    "{% for m in messages %}{% set x = 1 %}{% endfor %}{{ x }}": ["x"],  # what a loop sets ends with it
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% set ns.found = deep %}{% endfor %}": ["deep"],
    "{% macro show(part, mark='-') %}{{ mark }}{{ part }}{{ style }}{% endmacro %}{{ show(messages[0]) }}": ["style"],
    "{% for m in messages if m.role in shown_roles %}{{ m }}{% if stop_early %}{% break %}{% endif %}{% endfor %}": [
        "shown_roles",
        "stop_early",
    ],
    "{% generation %}{{ messages[0] }}{%- endgeneration -%}{{ date_string | default('today') }}": ["date_string"],
    "{{ tools | tojson }}{{ documents }}{% for name, value in extra.items() %}{{ name }}{% endfor %}": ["extra"],
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_options_are_what_a_template_reads_from_outside(template):
    assert sorted(variables_of(template) - STANDARD) == TEMPLATES[template]


def test_a_malformed_template_is_said_so():
    with pytest.raises(PolicyError, match=r"^the model's chat template cannot be read: .*endif"):
        variables_of("{% if x %}")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (
            ["enable_thinking"],
            "prompt.template: the model's chat template reads no 'thinking'. Did you mean "
            "'enable_thinking'? It reads: enable_thinking.",
        ),
        ([], "prompt.template: the model's chat template reads no 'thinking'. It reads: no options."),
    ],
)
def test_an_option_that_is_not_read_is_refused_with_those_that_are(known, message):
    prompt = Prompt("p", [], {}, template={"thinking": False})
    with pytest.raises(PolicyError) as refused:
        check_options(prompt, known)
    assert str(refused.value) == message
    with pytest.raises(PolicyError, match=r"^mixture\.maps\.prompt\.template: "):
        check_options(Prompt("p", [], {}, template={"thinking": False}, part="maps"), known)
    check_options(prompt, [*known, "thinking"])
