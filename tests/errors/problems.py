"""Functions, networks, residuals and data of the user's."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.errors.case import FAMILY, JOB, Case

REPOSITORY = Path(__file__).parents[2]


def job(function: str, more: str = "") -> str:
    return f'[problem]\nfunction = "{function}"\n{more}[subspace]\nrank = 5\n'


def network(*, forward: str, init: str = "pass", build: str = "return problem(model=Net())") -> str:
    """A module around the network of all cases, and a problem with it."""
    return f"""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()
        {init}

    def forward(self, x):
        {forward}


def build():
    {build}
"""


def other_weights(home: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, home / "w.safetensors")


def shipped_weights(home: Path) -> None:
    shutil.copy(REPOSITORY / "jobs" / "weights" / "antiderivative.safetensors", home / "w.safetensors")


SHIPPED = 'weights = "w.safetensors"\n'

FUNCTIONS = [
    Case(
        what="a shipped problem that is not there",
        job=job("poison"),
        says="problem.function = 'poison' is not known; did you mean 'poisson'? Or write \"file.py:function\" or \"package.module:function\"",
    ),
    Case(
        what="a file that is not there",
        job=job("nime.py:build"),
        says="problem.function: file HERE/nime.py does not exist: its path is relative to the job file",
    ),
    Case(
        what="a function that is not there",
        job=job("mine.py:biuld"),
        says="problem.function = 'HERE/mine.py:biuld': 'biuld' does not exist in HERE/mine.py; its functions: build, network, problem",
    ),
    Case(
        what="a file without a function",
        job=job("mine.py"),
        says="problem.function = 'mine.py' names a file alone: write \"mine.py:FUNCTION\"",
    ),
    Case(
        what="a module that is not there",
        job=job("no_such_module_x.problems:build"),
        says="problem.function = 'no_such_module_x.problems:build': there is no module 'no_such_module_x' in HERE or among the installed packages: correct the name, or set problem.path to the directory that holds it",
    ),
    Case(
        what="Python that does not parse",
        build="def build(:\n    pass\n",
        says="problem.function: running HERE/mine.py failed at HERE/mine.py:19: SyntaxError: invalid syntax (mine.py, line 19)",
    ),
    Case(
        what="an import that fails",
        build="import no_such_module_x\n\n\ndef build(): ...\n",
        says="problem.function: running HERE/mine.py failed at HERE/mine.py:19: ModuleNotFoundError: No module named 'no_such_module_x'",
    ),
    Case(
        what="a function that raises",
        build="return open('data.npy')",
        says="problem.function = 'HERE/mine.py:build' failed at HERE/mine.py:20: FileNotFoundError: [Errno 2] No such file or directory: 'data.npy'",
    ),
    Case(
        what="a function that ends the process",
        build="import sys\nsys.exit(0)",
        says="problem.function = 'HERE/mine.py:build' called sys.exit(0) at HERE/mine.py:21: raise an exception instead",
    ),
    Case(
        what="a function that returns nothing",
        build="problem()",
        says="problem.function = 'HERE/mine.py:build' returned None: return an lsr_hpc.Problem or ProblemFamily",
    ),
    Case(
        what="an argument that the function does not have",
        job=job("mine.py:build", "[problem.args]\nwidht = 3\n"),
        build="def build(width=3):\n    return problem()\n",
        says="unknown key 'problem.args.widht'; did you mean 'width'?",
    ),
    Case(
        what="an argument of another type",
        job=job("mine.py:build", '[problem.args]\nwidth = "3"\n'),
        build="def build(width: int = 3):\n    return problem()\n",
        says="problem.args.width = '3': an integer is expected",
    ),
    Case(
        what="an argument that is missing",
        build="def build(width):\n    return problem()\n",
        says="problem.args.width is missing: the function has no default for it, write it into [problem.args]",
    ),
    Case(
        what="an instance that the family does not have",
        job=job("mine.py:build", "instance = 4\n"),
        build=FAMILY,
        says="problem.instance = 4: 'two' has instances 0 to 1 (problem.args)",
    ),
    Case(
        what="a transfer to conditions that are not there",
        job=job("mine.py:build", "[transfer]\n"),
        says="[transfer] needs a family of several conditions, 'mine' has one: return a ProblemFamily with the source and its targets, or take the section out",
    ),
    Case(
        what="a transfer from a condition that is not there",
        job=job("mine.py:build", "[transfer]\nsource = 4\n"),
        build=FAMILY,
        says="transfer.source = 4: 'two' has instances 0 to 1, name one of those",
    ),
    Case(
        what="a transfer of a residual that differentiates in reverse mode",
        job=job("mine.py:build", '[transfer]\n[compute]\npanels = "torch"\n'),
        build="""\
def reverse(u, x, y):
    return torch.func.grad(lambda at: u(at).sum())(x) - y

def build():
    return ProblemFamily(name="two", n_instances=2, instance=lambda i: problem(residual=reverse))
""",
        says="residual block 'fit' cannot be transferred: the field is differentiated in reverse mode; write it with torch.func.jvp (lsr_hpc.derivatives) at its own points",
    ),
    Case(
        what="an instance that fails",
        build=FAMILY.replace("problem(data=(y + i,))", "[][i]"),
        says="problem.function = 'HERE/mine.py:build': instance(0) of its family failed at HERE/mine.py:20: IndexError: list index out of range",
    ),
    Case(
        what="instances of unlike networks",
        build=FAMILY.replace("data=(y + i,)", "model=nn.Linear(1, 1) if i else None, data=(y + i,)"),
        says="'mine': its network differs from that of instance 0 in parameters or model_spec; a family shares one architecture: make two jobs",
    ),
    Case(
        what="an argument of a shipped problem out of range",
        job=job("antiderivative", SHIPPED + "[problem.args]\nrows = 1\n"),
        given=shipped_weights,
        says="problem.args.rows = 1: must be from 2 to 1000000",
    ),
    Case(
        what="weights of another network",
        job=job("antiderivative", SHIPPED),
        given=other_weights,
        says="problem.weights = 'HERE/w.safetensors': 25 of its tensors do not fit width = 50, depth = 5: 'branch.mean' has shape none at all in the file, (100,) is needed; set the sizes that it was trained with",
    ),
]

NETWORKS = [
    Case(
        what="a function for a network",
        build="return problem(model=torch.sin)",
        says="problem.function = 'HERE/mine.py:build': model is of type builtin_function_or_method: a torch.nn.Module is expected",
    ),
    Case(
        what="batch normalisation in training mode",
        build="return problem(model=nn.Sequential(nn.Linear(1, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)))",
        says="layer '1' (BatchNorm1d) is in training mode, so the residual is not a fixed function of the parameters: call model.eval() first",
    ),
    Case(
        what="dropout in training mode",
        build="return problem(model=nn.Sequential(nn.Linear(1, 6), nn.Dropout(0.5), nn.Linear(6, 1)))",
        says="layer '1' (Dropout) is in training mode, so the residual is not a fixed function of the parameters: call model.eval() first",
    ),
    Case(
        what="dropout that knows no evaluation mode",
        build=network(forward="return nn.functional.dropout(self.inner(x), 0.5, training=True)"),
        says="residual block 'fit' returned other values when it was called again on the same points: no random numbers, dropout or counters in residual and network",
    ),
    Case(
        what="a network that counts its calls",
        build=network(
            init='self.register_buffer("calls", torch.zeros(()))',
            forward="self.calls += 1\n        return self.inner(x) * self.calls",
        ),
        says="residual block 'fit' returned other values when it was called again on the same points: no random numbers, dropout or counters in residual and network",
    ),
    Case(
        what="a network that returns complex numbers",
        build=network(
            init="self.a = nn.Parameter(torch.ones(1, dtype=torch.complex64))",
            forward="return self.inner(x) * self.a",
            build="return problem(model=Net())",
        ),
        says="residual block 'fit' failed on 4 points of shape (4, 1) at HERE/mine.py:14: the network returns torch.complex128: let it return real numbers, such as real and imaginary parts by torch.view_as_real; it is called as residual(u, points, *data) with u the network",
    ),
    Case(
        what="integer parameters",
        build=network(
            init="self.shift = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)",
            forward="return self.inner(x) + self.shift[0]",
        ),
        says="parameter 'shift' has dtype torch.int64: floating point is needed, real or complex; keep integers in buffers",
    ),
    Case(
        what="a network that computes in float16",
        build=network(
            forward="return self.inner(x).half()",
            build="return problem(residual=lambda u, x, y: u(x), model=Net())",
        ),
        says="residual block 'fit' returned torch.float16: parameters and points arrive as float64; do not cast inside the residual",
    ),
    Case(
        what="no parameter that may change",
        build="return problem(model=network().requires_grad_(False))",
        says="the model of problem 'mine' has no trainable parameter: set requires_grad on those that may change",
    ),
    Case(
        what="parameters without a shape (lazy layers)",
        build="return problem(model=nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 1)))",
        says="parameter '0.weight' has no shape yet: call the model once, or load its weights, before the problem is made",
    ),
    Case(
        what="parameters without values (meta device)",
        build="return problem(model=nn.Linear(1, 1, device='meta'))",
        says="parameter 'weight' is on the meta device, without values: load its weights",
    ),
    Case(
        what="NaN in a parameter",
        build="model = network()\nmodel[0].weight.data[2] = float('nan')\nreturn problem(model=model)",
        says="parameter '0.weight' holds NaN or Inf: the model is not a trained state; reload the weights or train again",
    ),
    Case(
        what="a network that returns two things",
        build=network(
            forward="return self.inner(x), x",
            build="return problem(residual=lambda u, x, y: u(x)[0] - y, model=Net())",
        ),
        says="residual block 'fit' failed on 4 points of shape (4, 1) at HERE/mine.py:30: the network returns a tuple: wrap it in a module that returns one tensor; it is called as residual(u, points, *data) with u the network",
    ),
    Case(
        what="patterns that name no parameter",
        job=JOB + 'parameters = ["trunk.*"]\n',
        says="subspace.parameters: 'trunk.*' fits no trainable parameter; their names are like 0.weight, 0.bias, 2.weight, 2.bias",
    ),
]

RESIDUALS = [
    Case(
        what="a number",
        build="return problem(residual=lambda u, x, y: 0.0)",
        says="residual block 'fit' returned float: return a tensor of shape (n,) or (n, m)",
    ),
    Case(
        what="the sum of squares",
        build="return problem(residual=lambda u, x, y: (u(x) - y).square().sum())",
        says="residual block 'fit' returned shape () for 4 points: expected (4,) or (4, m)",
    ),
    Case(
        what="numpy",
        build="return problem(residual=lambda u, x, y: (u(x) - y).numpy())",
        says="residual block 'fit' returned ndarray: return a tensor of shape (n,) or (n, m)",
    ),
    Case(
        what="a row too few",
        build="return problem(residual=lambda u, x, y: (u(x) - y)[1:])",
        says="residual block 'fit' returned shape (3, 1) for 4 points: expected (4,) or (4, m)",
    ),
    Case(
        what="(n,) less (n, 1)",
        build="return problem(residual=lambda u, x, y: u(x)[:, 0] - y)",
        says="residual block 'fit' returned shape (4, 4) for 4 points and (2, 2) for 2: probably (n, 1) and (n,) were broadcast to (n, n)",
    ),
    Case(
        what="single precision",
        build="return problem(residual=lambda u, x, y: (u(x) - y).float())",
        says="residual block 'fit' returned torch.float32: parameters and points arrive as float64; do not cast inside the residual",
    ),
    Case(
        what="complex numbers",
        build="return problem(residual=lambda u, x, y: torch.exp(1j * u(x)) - y)",
        says="residual block 'fit' returned torch.complex128: rows are real; return real and imaginary parts as two rows, by torch.view_as_real",
    ),
    Case(
        what="an error of torch",
        build="return problem(residual=lambda u, x, y: u(torch.cat([x, y], dim=1)))",
        says="residual block 'fit' failed on 4 points of shape (4, 1) at HERE/mine.py:20: RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x2 and 1x6); it is called as residual(u, points, *data) with u the network",
    ),
    Case(
        what="other arguments",
        build="return problem(residual=lambda u, x: u(x))",
        says="residual block 'fit' failed on 4 points of shape (4, 1): TypeError: build.<locals>.<lambda>() takes 2 positional arguments but 3 were given; it is called as residual(u, points, *data) with u the network",
    ),
    Case(
        what="points mixed",
        build="return problem(residual=lambda u, x, y: u(x) - u(x).mean())",
        says="residual block 'fit': the residual at a point changes with the other points of its batch; row i may depend on point i alone (no batch statistics, no sums over points)",
    ),
    Case(
        what="random numbers",
        build="return problem(residual=lambda u, x, y: u(x) - y + 1e-3 * torch.randn(len(x), 1))",
        says="residual block 'fit' returned other values when it was called again on the same points: no random numbers, dropout or counters in residual and network",
    ),
    Case(
        what="data written over",
        build="return problem(residual=lambda u, x, y: y.sub_(u(x)))",
        says="residual block 'fit' writes into its points or data: it is called many times on the same tensors, so use no in-place operations on them",
    ),
    Case(
        what="derivatives by torch.autograd.grad",
        build="""\
def residual(u, x, y):
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(u(x).sum(), x)[0] - y


def build():
    return problem(residual=residual)
""",
        says="residual block 'fit' cannot be differentiated with respect to the parameters by torch.func.jvp at HERE/mine.py:20: RuntimeError: You are attempting to call Tensor.requires_grad_() ...; stay in torch, take input derivatives by lsr_hpc.derivatives or torch.func, and do nothing in place or by the values",
    ),
    Case(
        what="numpy on the way",
        build="return problem(residual=lambda u, x, y: torch.from_numpy(u(x).numpy()) - y)",
        says="residual block 'fit' cannot be differentiated with respect to the parameters by torch.func.jvp at HERE/mine.py:20: RuntimeError: Cannot access data pointer of Tensor ...; stay in torch, take input derivatives by lsr_hpc.derivatives or torch.func, and do nothing in place or by the values",
    ),
    Case(
        what="an operation of your own without a derivative",
        build="""\
class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def build():
    return problem(residual=lambda u, x, y: Step.apply(u(x)) - y)
""",
        says="residual block 'fit' cannot be differentiated with respect to the parameters by torch.func.jvp at HERE/mine.py:30: RuntimeError: In order to use an autograd.Function ...; stay in torch, take input derivatives by lsr_hpc.derivatives or torch.func, and do nothing in place or by the values",
    ),
    Case(
        what="rounded values",
        build="return problem(residual=lambda u, x, y: torch.round(u(x)) - y)",
        says="no residual of problem 'mine' changes with any parameter: a dead network, residuals that do not use their first argument, or an operation without a derivative (round, sign, argmax, a comparison, detach)",
    ),
    Case(
        what="the network unused",
        build="return problem(residual=lambda u, x, y: x - y)",
        says="no residual of problem 'mine' changes with any parameter: a dead network, residuals that do not use their first argument, or an operation without a derivative (round, sign, argmax, a comparison, detach)",
    ),
    Case(
        what="a division by zero",
        build="return problem(residual=lambda u, x, y: (u(x) - y) / (x + 1))",
        says="residual block 'fit' is -inf at point [-1.0]: check points and data there for NaN, Inf or a division by zero",
    ),
    Case(
        what="squares beyond float64",
        build="return problem(residual=lambda u, x, y: 1e200 * (u(x) - y))",
        says="the square of the residual overflows float64: scale residual and data, or lower the weights of the residual blocks",
    ),
]

DATA = [
    Case(
        what="data of another length",
        build="return problem(data=(y[:39],))",
        says="residual block 'fit': data[0] has 39 rows but points has 40; both are indexed by the same global point number",
    ),
    Case(
        what="points in a list",
        build="return problem(points=x.tolist())",
        says="problem.function = 'HERE/mine.py:build': residual block 'fit': points is of type list: a tensor or an array with one row per point is expected",
    ),
    Case(
        what="points that are text",
        build="import numpy\nreturn problem(points=numpy.array([['a']] * 40))",
        says="residual block 'fit': points cannot be made a tensor (TypeError: can't convert np.ndarray of type numpy.str_. ...): give a tensor or an array of numbers",
    ),
    Case(
        what="data that are objects",
        build="import numpy\nreturn problem(data=(numpy.array([[None]] * 40),))",
        says="residual block 'fit': data[0] cannot be made a tensor (TypeError: can't convert np.ndarray of type numpy.object_. ...): give a tensor or an array of numbers",
    ),
    Case(
        what="no points",
        build="return problem(points=x[:0], data=(y[:0],))",
        says="residual block 'fit' has no points: leave the block out or give it data",
    ),
    Case(
        what="complex data",
        build="return problem(data=(y + 1j,))",
        says="residual block 'fit': data[0] is complex; split real and imaginary parts into two columns",
    ),
    Case(
        what="NaN in the data",
        build="bad = y.clone()\nbad[17] = float('nan')\nreturn problem(data=(bad,))",
        says="residual block 'fit' is nan at point [-0.12820512820512825]: check points and data there for NaN, Inf or a division by zero",
    ),
    Case(
        what="Inf in the points",
        build="bad = x.clone()\nbad[3] = float('inf')\nreturn problem(points=bad)",
        says="residual block 'fit' has the parameter derivative nan at point [inf]: check points and data there for NaN, Inf or a division by zero",
    ),
    Case(
        what="a negative weight",
        build="return problem(weight=-1.0)",
        says="residual block 'fit' has weight -1.0: use a finite number >= 0",
    ),
    Case(
        what="a weight that is text",
        build="return problem(weight='heavy')",
        says="problem.function = 'HERE/mine.py:build': residual block 'fit': weight is of type str: a number is expected",
    ),
    Case(
        what="all weights zero",
        build="return problem(weight=0.0)",
        says="every residual block has weight 0: give one of them a positive weight",
    ),
    Case(
        what="two blocks of one name",
        build="blocks = problem().blocks\nreturn problem(blocks=[*blocks, *blocks])",
        says="two residual blocks are called 'fit': give each its own name",
    ),
    Case(
        what="no block",
        build="return problem(blocks=[])",
        says="problem 'mine' has no residual block: give at least one ResidualBlock",
    ),
    Case(
        what="evaluation data without a point",
        build="return problem(evaluation=Evaluation(inputs=(x[:0],), reference=y[:0]))",
        says="evaluation.inputs[0] is empty: give at least one point, or evaluation=None",
    ),
    Case(
        what="evaluation data in unequal groups",
        build="return problem(evaluation=Evaluation(inputs=(x,), reference=y, groups=7))",
        says="evaluation.groups = 7: 40 points cannot be cut into so many equal groups; use a divisor",
    ),
    Case(
        what="labels that are none",
        build="return problem(evaluation=Evaluation(inputs=(x,), reference=y, one_hot=True))",
        says="evaluation.one_hot: evaluation.reference has rows that are not a single 1 among zeros; give labels "
        "by torch.nn.functional.one_hot, or leave it out",
    ),
    Case(
        what="outputs to judge, none of them",
        build="return problem(evaluation=Evaluation(inputs=(x,), reference=y, outputs=()))",
        says="evaluation.outputs is empty: name the outputs that have a reference, or leave it out",
    ),
    Case(
        what="evaluation inputs of another length",
        build="return problem(evaluation=Evaluation(inputs=(x[:9],), reference=y))",
        says="evaluation.inputs[0] has 9 rows, evaluation.reference has 40: give a row of each for every point",
    ),
    Case(
        what="a reference of another shape",
        build="return problem(evaluation=Evaluation(inputs=(x,), reference=y[:, 0]))",
        says="the model maps evaluation.inputs of shape (4, 1) to (4, 1), but evaluation.reference has shape (4,) there: give both as (N, C)",
    ),
    Case(
        what="NaN in the reference",
        build="return problem(evaluation=Evaluation(inputs=(x,), reference=y / 0))",
        says="evaluation.reference holds NaN or Inf: clean the evaluation data",
    ),
    Case(
        what="evaluation inputs that the network does not take",
        build="return problem(evaluation=Evaluation(inputs=(torch.cat([x, x], 1),), reference=y))",
        says="the model failed on evaluation.inputs of shape (4, 2): RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x2 and 1x6); give what the model is called with",
    ),
]

SIZES = [
    Case(
        what="a rank above the rows",
        job=JOB.replace("5", "33"),
        build="return problem(model=nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1)))",
        says="subspace.rank = 33, but the problem has 32 fitted rows and 121 parameters that may change: use at most 32, better a tenth of the rows",
    ),
    Case(
        what="a rank above the parameters",
        job=JOB.replace("5", "25"),
        says="subspace.rank = 25, but the problem has 32 fitted rows and 19 parameters that may change: use at most 19, better a tenth of the rows",
    ),
    Case(
        what="memory that does not hold the libraries",
        job=JOB + '[compute]\nmemory_per_rank = "64MiB"\n',
        says="compute.memory_per_rank = '64MiB' is too small: at least ... MiB are needed (libraries and data ... MiB, basis V 0 MiB, ...); raise it, start more ranks, or lower subspace.rank = 5",
    ),
    Case(
        what="an explicit Jacobian that does not fit",
        job=JOB + '[compute]\njacobian = "explicit"\n',
        build="""\
x, y = (torch.linspace(-1, 1, 40000, dtype=torch.float64)[:, None] for _ in "xy")


def build():
    model = nn.Sequential(nn.Linear(1, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1))
    return problem(model=model, points=x, data=(y,))
""",
        says='compute.jacobian = "explicit" holds ... MiB per rank, and compute.memory_per_rank leaves ... MiB for it: raise it, start more ranks, or use "auto"',
    ),
    Case(
        what="a GPU that is not there",
        job=JOB + '[compute]\ndevice = "cuda"\n',
        code=76,
        says='compute.device = "cuda", but torch sees no GPU on at least one rank: use "auto", or see `lsr-hpc doctor`',
    ),
    Case(
        what="new points every round, of a problem that cannot draw any",
        argv="run job.toml --out out",
        job=JOB + "[iterate]\nresample = true\n",
        apart=True,
        says="iterate.resample = true, but problem 'mine' has fixed points: leave it out, or give Problem.resample",
    ),
]
