"""A user's problem function may do anything; what goes wrong is said with the function and the line."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsr_hpc.build import build_problem
from lsr_hpc.errors import JobError
from lsr_hpc.job import load_job
from lsr_hpc.problem import Problem, ProblemFamily

Build = Callable[..., ProblemFamily]
HEAD = """
import torch
from lsr_hpc import Problem, ProblemFamily, ResidualBlock

def block(points=torch.zeros(4, 1)):
    return ResidualBlock(name="fit", residual=lambda u, x: u(x), points=points)

def problem(**other):
    return Problem(**({"name": "p", "model": torch.nn.Linear(1, 1), "blocks": [block()]} | other))
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds the problem of a job whose function ``build`` has the given text."""

    def run(text: str, *overrides: str, head: str = HEAD, function: str = "mine.py:build") -> ProblemFamily:
        (tmp_path / "mine.py").write_text(head + text)
        (tmp_path / "job.toml").write_text(f'[problem]\nfunction = "{function}"\n')
        return build_problem(load_job(tmp_path / "job.toml", overrides))

    return run


def marked_line(text: str) -> str:
    """The line that a comment marks, as the message names it."""
    lines = (HEAD + text).splitlines()
    return f"mine.py:{next((i for i, line in enumerate(lines, 1) if '# here' in line), 0)}"


# What the function does, and what the message has to say besides file and line.
FAILING = {
    "raises": ("def build():\n    raise ValueError('no data')  # here", ["ValueError: no data", "LINE"]),
    "misses a file": ("def build():\n    open('/none/x')  # here", ["FileNotFoundError", "/none/x", "LINE"]),
    "fails in torch": ("def build():\n    torch.zeros(2) @ torch.zeros(3)  # here", ["RuntimeError", "LINE"]),
    "fails in a callee": (
        "def build():\n    return inner()\ndef inner():\n    return 1 / 0  # here",
        ["ZeroDivisionError", "LINE"],
    ),
    "exits": ("def build():\n    import sys\n    sys.exit(0)  # here", ["sys.exit(0)", "LINE"]),
    "exits on import": ("import sys\nsys.exit()  # here\ndef build(): pass", ["sys.exit(None)", "LINE"]),
    "raises on import": ("x = {}['k']  # here\ndef build(): pass", ["KeyError: 'k'", "LINE"]),
    "does not parse": ("def build(:  # here\n    pass", ["SyntaxError", "LINE"]),
    "misses a module": ("import no_such_module_x  # here\n", ["no_such_module_x", "LINE"]),
    "is not there": ("def biuld():\n    pass", ["'build' does not exist", "biuld"]),
    "is no function": ("build = 3", ["'build' is not a function"]),
    "returns nothing": ("def build():\n    pass", ["returned None", "lsr_hpc.Problem"]),
    "returns a number": ("def build():\n    return 3", ["returned of type int"]),
    "blocks are one block": ("def build():\n    return problem(blocks=block())", ["blocks is of type Resid"]),
    "blocks of tuples": ("def build():\n    return problem(blocks=[(1, 2)])", ["blocks[0] is of type tuple"]),
    "points in a list": ("def build():\n    return problem(blocks=[block([1.0])])", ["'fit': points"]),
    "points are a number": (
        "def build():\n    return problem(blocks=[block(torch.tensor(1.0))])",
        ["'fit': points is of type Tensor"],
    ),
    "model is a function": ("def build():\n    return problem(model=torch.sin)", ["model is of type"]),
    "evaluation is a tuple": ("def build():\n    return problem(evaluation=(1, 2))", ["evaluation is"]),
    "empty family": (
        "def build():\n    return ProblemFamily(name='f', n_instances=0, instance=lambda i: problem())",
        ["n_instances = 0"],
    ),
    "unhinted wrong call": ("def build(a):\n    pass", ["problem.args.a is missing"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(FAILING))
def test_failing_function_is_named_with_its_line(case: str, build: Build) -> None:
    text, words = FAILING[case]
    with pytest.raises(JobError) as caught:
        build(text)
    message = str(caught.value)
    for word in [*words, "problem.args" if "missing" in words[0] else "problem.function"]:
        assert word.replace("LINE", marked_line(text)) in message
    assert "\n" not in message


FAMILY = "def build():\n    return ProblemFamily(name='f', n_instances=2, instance=instance)\n"


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ("def instance(i):\n    return [problem()][i]  # here", ["instance(1)", "IndexError", "LINE"]),
        ("def instance(i):\n    return problem() if i == 0 else None", ["instance(1)", "is None"]),
        ("def instance(i):\n    import sys\n    sys.exit(i)", ["instance(0)", "sys.exit(0)"]),
        ("def instance(i):\n    return problem(blocks=[] if i == 0 else [i])", ["instance(1)", "blocks[0]"]),
    ],
)
def test_failing_instance_of_a_family_is_named(instance: str, words: list[str], build: Build) -> None:
    family = build(FAMILY + instance)
    with pytest.raises(JobError) as caught:
        [family.instance(i) for i in range(family.n_instances)]
    for word in words:
        assert word.replace("LINE", marked_line(FAMILY + instance)) in str(caught.value)


def test_annotations_that_only_type_checkers_resolve_are_no_mistake(build: Build) -> None:
    head = "from __future__ import annotations\n" + HEAD
    text = "def build(a: int, b: Nowhere = None) -> Elsewhere:\n    return problem()\n"

    assert isinstance(build(text, "problem.args.a=1", head=head).instance(0), Problem)
    with pytest.raises(JobError, match=r"problem.args.a = 'x': an integer is expected"):
        build(text, "problem.args.a=x", head=head)


def test_weights_for_a_function_that_takes_none_are_refused(build: Build, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(JobError, match=r"problem.weights as first argument"):
        build("def build():\n    return problem()", "problem.weights=w.safetensors")


def test_dataclasses_and_pickles_of_the_module_work(build: Build) -> None:
    # Both look the module up in sys.modules, dataclasses with postponed annotations while it is executed.
    text = (
        "import dataclasses\n@dataclasses.dataclass\nclass Box:\n    x: int = 3\n"
        "class Net(torch.nn.Linear):\n    pass\n"
        "def build():\n    return problem(model=Net(1, 1), start_metrics={'box': Box()})\n"
    )
    built = build(text, head="from __future__ import annotations\n" + HEAD).instance(0)

    assert pickle.loads(pickle.dumps(built.start_metrics))["box"].x == 3
    assert isinstance(pickle.loads(pickle.dumps(built.model)), type(built.model))


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(HEAD + f"def build():\n    return problem(name='{name}')\n")
        (tmp_path / name / "job.toml").write_text('problem = "mine.py:build"\n')
    families = [build_problem(load_job(tmp_path / name / "job.toml")) for name in ("a", "b")]

    assert [f.instance(0).name for f in families] == ["a", "b"]
    assert len({type(f.instance(0).blocks[0].residual) for f in families}) == 1
    modules = {f.instance(0).blocks[0].residual.__module__ for f in families}
    assert len(modules) == 2
    assert modules <= set(sys.modules)


def test_modules_beside_the_job_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_package_q").mkdir()
    (tmp_path / "my_package_q" / "__init__.py").touch()
    (tmp_path / "my_package_q" / "problem.py").write_text("from my_helper_q import *\n")
    (tmp_path / "my_helper_q.py").write_text(HEAD + "def build():\n    return problem(name='found')\n")
    (tmp_path / "job.toml").write_text('problem = "my_package_q.problem:build"\n')
    job = load_job(tmp_path / "job.toml")
    # From a copy elsewhere, as `lsr-hpc predict` reads it.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.toml").write_text(job.as_toml())

    assert build_problem(load_job(tmp_path / "run" / "job.toml")).instance(0).name == "found"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("no_such_module_y:build", "no module 'no_such_module_y'"),
        ("nowhere.py:build", "nowhere.py does not exist"),
        ("mine.py:", "'' does not exist"),
        (":build", "file.py:function"),
        ("../x/y:build", "file.py:function"),
        ("builtins:len", "problem.args.obj is missing"),
        ("math:pi", "'pi' is not a function"),
        ("", "is not known"),
        ("antiderivativ", "did you mean 'antiderivative'?"),
    ],
)
def test_function_that_cannot_be_found_is_refused(function: str, expected: str, build: Build) -> None:
    with pytest.raises(JobError) as caught:
        build("def build():\n    return problem()\n", function=function)
    assert expected in str(caught.value)
