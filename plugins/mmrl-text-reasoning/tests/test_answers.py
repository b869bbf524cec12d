r"""Answers in every form, hostile ones included: what they score, how long that takes, and that nothing is executed."""

import json
import time

import pytest

from mmrl_core.cli import main
from mmrl_core.errors import TaskDataError
from mmrl_text_reasoning import apart
from mmrl_text_reasoning.numbers import read_number
from mmrl_text_reasoning.parsing import final_answer, last_box
from mmrl_text_reasoning.rewards import accuracy, gold_answer

# gold, right answers, wrong answers; "@" stands for the answer, and those that have none are put into a box
FORMS = [
    (
        "42",
        ["42", "42.0", "042", "+42", "4.2e1", "84/2", r"\frac{84}{2}", "x = 42", "４２"],
        ["41", "-42", "420", "4 2"],
    ),
    ("1234", ["1,234", "1{,}234", r"1\,234", "1 234", "1234."], ["1.234", "12,34"]),
    (
        "1/2",
        [r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", "0.5", ".5", r"50\%", "50%", r"\left(\frac{1}{2}\right)"],
        ["2"],
    ),
    (r"\frac{1}{3}", ["0.333333", "1/3", r"\frac{2}{6}", "3^{-1}"], ["0.33", "0.4", "3"]),
    ("11/2", [r"5\frac{1}{2}", "5.5", "5 1/2"], ["1 1/2", "51/2"]),
    ("50%", ["50", r"50\%", "50 percent", "0.5", r"\frac{1}{2}"], ["5", "0.05"]),
    ("18", [r"\$18", "$18", "18 dollars", r"18\text{ dollars}", r"\$18.00", "€18"], ["18 million", "18.5"]),
    ("10", ["10 cm", r"10\text{ cm}^2", r"10\ \mathrm{m}", "10 square units"], ["10 thousand", "10 or 12", "100 cm"]),
    ("90", [r"90^\circ", r"90^{\circ}", "90°", "90 degrees"], ["9", r"\pi/3"]),
    (r"2\pi", ["2π", r"2 \cdot \pi", r"\pi + \pi"], ["2", "6.28"]),
    (r"\sqrt{2}/2", [r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}"], [r"\sqrt{2}"]),
    ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2", "x²+2x+1"], ["x^2+2x", "(y+1)^2"]),
    ("[1,2)", ["[1, 2)", r"\left[1,2\right)"], ["(1,2)", "[1,2]"]),
    (r"(-\infty, 3]", [r"(-\infty,3]", "(-∞, 3]"], [r"(-\infty,3)", "3"]),
    (r"(-\infty,0)\cup(1,2)", [r"(1,2)\cup(-\infty,0)", "(-∞,0)∪(1,2)"], [r"(-\infty,2)"]),
    (r"\{1,2,3\}", [r"\{3, 2, 1\}", "1, 2, 3"], [r"\{1,2\}", r"\{1,2,4\}"]),
    ("(1,2)", ["(1, 2)", r"\left(1,\,2\right)"], ["(2,1)", "1"]),
    (
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"],
        [r"\begin{pmatrix}2\\1\end{pmatrix}"],
    ),
    (r"\text{Evelyn}", ["Evelyn", r"\text{evelyn}", "EVELYN"], ["Carla", "Eve"]),
    (r"\text{(C)}", ["(C)", "C", r"\text{C}"], ["B"]),
    ("y=2x+1", ["y = 2x + 1", "2x+1"], ["y=2x"]),
    ("4.5e33", [r"4.5 \times 10^{33}", "4.5*10^33"], ["4.5e32"]),
    ("7", ["The answer is @", r"\boxed{3} or \boxed{@}", r"\boxed{\boxed{@}}", r"\fbox{@}", r"\boxed @", "#### @"], []),
    ("8", ["so we get $x = @$", "<answer>@</answer>", r"<answer>\boxed{@}</answer>", "**Answer:** @", "it is @."], []),
    ("9", [r"<think>\boxed{1}</think>\boxed{@}", "Final answer: $@$", "2 + 7 = @", r"\[ \boxed{@} \]"], [r"\boxed{@"]),
    (r"\left\{ 1 \right\}", [r"\boxed{\left\{ 1 \right\}} in the end"], [r"\boxed{\left\{ 2 \right\}}"]),
]
WRONG_WHATEVER = [
    "",
    " ",
    "I do not know",
    "\\boxed{}",
    "\\boxed{?}",
    "<answer></answer>",
    "####",
    "$$",
    "\\boxed",
    "}{",
]


def boxed(text, answer="7"):
    marked = any(mark in text for mark in ("@", "boxed", "answer", "####"))
    return text.replace("@", answer) if marked else f"so it is \\boxed{{{text}}}"


def cases():
    for gold, right, wrong in FORMS:
        for text in right:
            yield gold, boxed(text, gold), 1.0
        for text in wrong:
            yield gold, boxed(text, "1" + gold), 0.0
    for text in WRONG_WHATEVER:
        yield "42", text, 0.0


TABLE = list(cases())
SLOW = [  # each of these keeps a parser of mathematics busy for longer than anyone waits
    "9^{9^{9^9}}",
    "10000000!",
    "((9!)!)!",
    r"\binom{10^9}{10^8}",
    "(a+b+c+d+e+f)^{200}",
    r"\sum_{k=1}^{10^{12}} k^{k}",
    "(" * 450 + "1" + ")" * 450,
    r"\tan(10^{10^{8}})",
]
QUICK = {
    "a million braces": "{" * 10**6 + "}" * 10**6,
    "boxes in boxes": "\\boxed{" * 10**5 + "1" + "}" * 10**5,
    "boxes never closed": "\\boxed{" * 10**5,
    "deep parentheses": f"\\boxed{{{'(' * 5000}1{')' * 5000}}}",
    "deep fractions": f"\\boxed{{{'frac{1}{' * 200}2{'}' * 200}}}",
    "a megabyte of digits": "9" * 10**6,
    "a megabyte of digits in a box": f"\\boxed{{{'9' * 10**6}}}",
    "a long number": f"\\boxed{{{'9' * 900}}}",
    "a huge exponent": "\\boxed{1e999}",
    "an exponent beyond": "\\boxed{1e999999999}",
    "dollars": "$" * 10**6,
    "commas": "1," * 10**5,
    "answers": "the answer is " * 10**5,
    "open tags": "<answer>" * 10**5 + "<think>" * 10**5,
    "a lone surrogate": "\ud800 \\boxed{\udfff}",
    "nothing by nothing": "\\boxed{\\frac{1}{0}}",
    "not a number": "\\boxed{\\text{nan}} \\boxed{nan}",
    "null characters": "\\boxed{\x00\x01}",
}
CODE = [
    "__import__('os').system('touch {}')",
    "open('{}', 'w')",
    "().__class__.__base__.__subclasses__()",
    "exec(\"open('{}', 'w')\")",
    "lambda: open('{}', 'w')",
]
LIMIT_S = 2.0
HASTY_S = 0.25  # hostile answers are wrong whenever they are ended


@pytest.fixture(scope="module", autouse=True)
def started():
    """The process that judges, whose start is not a matter of any answer."""
    accuracy([r"\boxed{x+1}"], [{"answer": "1+x"}])


def timed(completion, gold, **options):
    """Score and seconds, once a process is there: how soon the next one is depends on what else the machine does."""
    apart._function(apart._MATHEMATICS).start()
    start = time.monotonic()
    score = accuracy([completion], [{"answer": gold}], **options)[0]
    return score, time.monotonic() - start


@pytest.mark.parametrize("gold", [form[0] for form in FORMS])
def test_gold_scores_1_in_every_form(gold):
    for field in ({"answer": gold}, {"solution": f"Hence \\boxed{{{gold}}}."}, {"answer": f"So.\n#### {gold}"}):
        assert accuracy([f"It is \\boxed{{{gold}}}.", f"<answer>{gold}</answer>"], [field] * 2) == [1.0, 1.0]


def test_every_form_of_an_answer_scores_as_it_should():
    wrong = [(gold, text, score) for gold, text, score in TABLE if accuracy([text], [{"answer": gold}]) != [score]]
    assert not wrong


def test_slow_answers_are_ended_and_the_rest_of_the_batch_is_unharmed():
    batch, rows = [boxed(SLOW[0]), r"\boxed{6 \cdot 7}", boxed(SLOW[1]), r"\boxed{\sqrt{1764}}"], [{"answer": "42"}] * 4
    assert accuracy(batch, rows) == [0.0, 1.0, 0.0, 1.0]
    start = time.monotonic()
    assert accuracy(batch, rows) == [0.0, 1.0, 0.0, 1.0]
    assert time.monotonic() - start < 0.5  # a verdict is kept: a slow answer costs its time once


@pytest.mark.parametrize("answer", SLOW[2:])
def test_no_answer_takes_two_seconds(answer):
    score, elapsed_s = timed(boxed(answer), "42", answer_s=HASTY_S)
    assert score == 0.0 and elapsed_s < LIMIT_S


@pytest.mark.parametrize("what", QUICK)
def test_hostile_texts_are_read_quickly_and_pay_nothing(what):
    score, elapsed_s = timed(QUICK[what], "42")
    assert score == 0.0 and elapsed_s < LIMIT_S


@pytest.mark.parametrize("code", CODE)
def test_nothing_is_executed(code, tmp_path):
    written = tmp_path / "written"
    for form in (r"\boxed{@}", "<answer>@</answer>", "the answer is @", "@"):
        assert timed(form.replace("@", code.replace("{}", str(written))), "42", answer_s=HASTY_S)[0] == 0.0
    assert not written.exists()


def test_a_million_braces_around_a_box_do_not_hide_it():
    assert timed("{" * 10**6 + r"\boxed{42}" + "}" * 10**6, "42")[0] == 1.0


def test_mmrl_score_reads_two_hundred_answers(tmp_path, capsys):
    written = str(tmp_path / "written")
    hostile = [boxed(text) for text in SLOW[:2]] + list(QUICK.values()) + [text.replace("{}", written) for text in CODE]
    table = [*TABLE, *(("42", text, 0.0) for text in hostile)]
    table = [*table, *TABLE[: 200 - len(table)]]
    assert len(table) == 200
    file = tmp_path / "answers.jsonl"
    rows = [{("answer", "solution")[i % 2]: gold} for i, (gold, _, _) in enumerate(table)]
    lines = [{"completion": text, "sample": row} for (_, text, _), row in zip(table, rows, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for reward, options in (("accuracy", []), ("cosine", []), ("format", ["--option", "form=boxed"])):
        assert main(["score", f"text_reasoning/{reward}", str(file), *options]) == 0
        results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(results) == 200 and not [result for result in results if "error" in result]
        if reward == "accuracy":
            assert [result["reward"] for result in results] == [score for _, _, score in table]
    assert not (tmp_path / "written").exists()


def test_the_gold_is_read_from_answer_or_solution():
    gsm8k = "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 24"
    assert gold_answer({"answer": gsm8k}) == gold_answer({"solution": gsm8k}) == "24"
    assert gold_answer({"solution": r"Thus $\boxed{1}$, or $\boxed{\frac{2}{3}}$."}) == r"\frac{2}{3}"
    assert gold_answer({"answer": None, "solution": "$5$"}) == "$5$"
    assert gold_answer({}) is None and accuracy(["1"], [{}]) == [None]
    with pytest.raises(TaskDataError, match="the gold has to be"):
        gold_answer({"solution": "It can be shown that there are several. " * 20})


def test_only_marked_answers_count_if_asked():
    texts = ["the answer is 5", "$5$", "5", r"\boxed{5}", "#### 5", "<answer>5</answer>"]
    assert accuracy(texts, [{"answer": "5"}] * 6, untagged=False) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_the_thinking_is_not_read():
    assert final_answer(r"<think>\boxed{5}</think> so 6") == "6"
    assert final_answer(r"<think>\boxed{5}</think>", untagged=False) is None


def test_braces_are_counted():
    assert last_box(r"\boxed{\{1\}} } { \boxed{a{b}c}") == "a{b}c"
    assert last_box("no box") is None and last_box(r"\boxed{1") is None


def test_numbers_that_are_none():
    for text in ("", "1/0", r"\frac{1}{0}", "1e5000", "9" * 400, "--1", "3 pi", "2x", "1,23", "%", "1..2"):
        assert read_number(text) is None, text


def test_a_reward_with_a_process_of_its_own_judges_there(monkeypatch):
    monkeypatch.setattr(apart.multiprocessing, "current_process", lambda: type("Process", (), {"name": "mmrl-reward"}))
    assert apart._function("math:gcd").call((4, 6), {}, 1.0) == 2
