"""Job files."""

from __future__ import annotations

from tests.errors.case import Case

A = 'problem = "antiderivative"\n'
CASES = [
    Case(
        what="not there",
        argv="refine jbo.toml",
        says="job file jbo.toml does not exist: check the path; the ready ones are in jobs/",
    ),
    Case(
        what="a directory",
        argv="refine .",
        says="job file . cannot be read (Is a directory): name a TOML file",
    ),
    Case(
        what="not UTF-8",
        given=lambda home: (home / "job.toml").write_bytes(b'name = "\xe4"'),
        says="job file job.toml is not UTF-8 text (...): save it as that",
    ),
    Case(
        what="not TOML",
        job="problem = antiderivative\n",
        says="job.toml is not valid TOML: Invalid value (at line 1, column 11)",
    ),
    Case(
        what="a key twice",
        job=A + "[subspace]\nrank = 5\nrank = 6\n",
        says="job.toml is not valid TOML: Cannot overwrite a value (at line 4, column 9)",
    ),
    Case(
        what="no problem",
        job="[subspace]\nrank = 5\n",
        says='job.toml: problem is missing: write problem = "NAME" of `lsr-hpc problems`, or "FILE.py:FUNCTION"',
    ),
    Case(
        what="an unknown section",
        job=A + "[subpsace]\nrank = 5\n",
        says="job.toml:2: unknown key 'subpsace'; did you mean 'subspace'?",
    ),
    Case(
        what="an unknown key",
        job=A + "[subspace]\nrnak = 5\n",
        says="job.toml:3: unknown key 'subspace.rnak'; did you mean 'rank'?",
    ),
    Case(
        what="a key in the wrong section",
        job=A + "[solver]\nrank = 5\n",
        says="job.toml:3: unknown key 'solver.rank'; it is a key of [subspace]",
    ),
    Case(
        what="text for a number",
        job=A + '[subspace]\nrank = "5"\n',
        says="job.toml:3: subspace.rank = '5': an integer is expected",
    ),
    Case(
        what="a number with a fraction for an integer",
        job=A + "[subspace]\nrank = 5.5\n",
        says="job.toml:3: subspace.rank = 5.5: an integer is expected",
    ),
    Case(
        what="a number for text",
        job=A + "[compute]\nmemory_per_rank = 2\n",
        says="job.toml:3: compute.memory_per_rank = 2: a string is expected",
    ),
    Case(
        what="text for a list",
        job=A + '[subspace]\nparameters = "trunk.*"\n',
        says="job.toml:3: subspace.parameters = 'trunk.*': a list of strings is expected",
    ),
    Case(
        what="a value for a section",
        job="subspace = 3\n" + A,
        says="job.toml:1: subspace = 3: a table [subspace] is expected",
    ),
    Case(
        what="out of range",
        job=A + "[subspace]\nrank = 0\n",
        says="job.toml:3: subspace.rank = 0: must be at least 1 and below 2147483648",
    ),
    Case(
        what="NaN", job=A + "[solver]\nmu = nan\n", says="job.toml:3: solver.mu = nan: must be at least 0.0"
    ),
    Case(
        what="none of the choices",
        job=A + '[subspace]\nbasis = "kyrlov"\n',
        says="job.toml:3: subspace.basis = 'kyrlov': did you mean 'krylov'? use one of 'krylov', 'svd', ...",
    ),
    Case(
        what="a memory size that is none",
        job=A + '[compute]\nmemory_per_rank = "2 gigs"\n',
        says='job.toml:3: compute.memory_per_rank: memory size \'2 gigs\' is not understood: write for example "2GiB" or "800MB"',
    ),
    Case(
        what="a full-space solve by TSQR",
        job=A + '[solver]\nspace = "full"\n',
        says='job.toml:3: solver.space = "full" needs an iterative solver: set solver.type to "lsqr" or "cgls"',
    ),
    Case(
        what="damping that LSQR has not",
        job=A + '[solver]\ntype = "lsqr"\nmu = 1e-3\n',
        says='job.toml:4: solver.mu = 0.001 needs solver.type = "tsqr": PETSc\'s lsqr has no damping',
    ),
    Case(
        what="a second solve without a subspace",
        job=A + '[solver]\ntype = "lsqr"\nspace = "full"\nresolve = true\n',
        says='job.toml:5: solver.resolve = true needs solver.space = "subspace"',
    ),
    Case(
        what="two halves of one direction",
        job=A + '[subspace]\nbasis = "svd+krylov"\nrank = 1\n',
        says='job.toml:3: subspace.basis = "svd+krylov" needs subspace.rank >= 2, one for each half',
    ),
    Case(
        what="everything held out",
        job=A + "[held_out]\nfraction = 0.95\n",
        says="job.toml:3: held_out.fraction = 0.95: at most 0.9, or nothing is left to fit",
    ),
    Case(
        what="no rounds, momentum of one, float32 for tangent steps",
        job=A + "[iterate]\nrounds = 0\nmomentum = 1.0\n",
        says="job.toml has 2 mistakes:\n  job.toml:3: iterate.rounds = 0: must be at least 1 and below 2147483648\n  job.toml:4: iterate.momentum = 1.0: must be at least 0 and below 1",
    ),
    Case(
        what="tangent steps in single precision",
        job=A + '[iterate]\nprecision = "float32"\n',
        says='job.toml:3: iterate.precision = "float32" is for "lbfgs" and "adam": tangent steps are solved in float64',
    ),
    Case(
        what="a transfer of no ranks, from an instance below the first",
        job=A + "[transfer]\nranks_per_target = 0\nsource = -1\n",
        says="job.toml has 2 mistakes:\n  job.toml:3: transfer.ranks_per_target = 0: must be at least 1 and below 2147483648\n  job.toml:4: transfer.source = -1: must be at least 0 and below 2147483648",
    ),
    Case(
        what="a transfer in rounds",
        job=A + "[transfer]\n[iterate]\nrounds = 2\n",
        says="job.toml:3: [iterate] and [transfer] do not go together: take one of the sections out",
    ),
    Case(
        what="a transfer of one condition",
        job='[problem]\nfunction = "antiderivative"\ninstance = 3\n[transfer]\n',
        says="job.toml:3: problem.instance = 3: [transfer] needs all conditions of the family; take it out, and name the instance to `lsr-hpc predict`",
    ),
    Case(
        what="a transfer by LSQR",
        job=A + '[transfer]\n[solver]\ntype = "lsqr"\n',
        says="job.toml:4: solver.type = 'lsqr': [transfer] solves by \"tsqr\" alone",
    ),
    Case(
        what="rounds of a transfer",
        argv="run job.toml --out out",
        job=A + "[transfer]\n",
        says="job.toml has a section [transfer], which has no rounds: use `lsr-hpc refine`, or take the section out",
    ),
    Case(
        what="two ranks without a launcher",
        argv="run job.toml --out out",
        job=A + '[run]\nlauncher = "local"\nranks = 2\n',
        says='job.toml:3: run.launcher = "local" starts one rank, not run.ranks = 2: use "mpiexec", or one',
    ),
    Case(
        what="a controller that listens everywhere",
        job=A + '[run]\nhost = "0.0.0.0"\n',
        says="job.toml:3: run.host = '0.0.0.0': name the one address that is needed, not all of them",
    ),
    Case(
        what="a time that SLURM does not know",
        job=A + '[slurm]\ntime = "2 hours"\n',
        says='job.toml:3: slurm.time = \'2 hours\': write "hours:minutes:seconds" or "days-hours"',
    ),
    Case(
        what="an axis that is no setting",
        job=A + '[campaign.axes]\n"subspace.rnak" = [1, 2]\n',
        argv="campaign job.toml",
        says="the members of the campaign cannot be:\n  - member 0 (subspace.rnak = 1) and 1 other: unknown key 'subspace.rnak'; did you mean 'rank'?",
    ),
    Case(
        what="an axis from a file that is not there",
        job=A + '[campaign.axes]\n"subspace.rank" = { file = "ranks.csv", column = "rank" }\n',
        argv="campaign job.toml",
        says="job.toml:2: campaign.axes: subspace.rank: ranks.csv cannot be read (No such file or directory): its path is relative to the job file",
    ),
    Case(
        what="axes of different lengths side by side",
        job=A
        + '[campaign]\ncombine = "zip"\n[campaign.axes]\n"subspace.rank" = [1, 2]\n"solver.mu" = [0.0]\n',
        argv="campaign job.toml",
        says='job.toml:3: campaign.combine = "zip" needs axes of one length: subspace.rank has 2, solver.mu has 1',
    ),
    Case(
        what="a member that cannot be",
        job=A + '[campaign.axes]\n"subspace.rank" = [5, 0]\n',
        argv="campaign job.toml --out out",
        says="the members of the campaign cannot be:\n  - member 1 (subspace.rank = 0): subspace.rank = 0: must be at least 1 and below 2147483648",
    ),
    Case(
        what="a name that leads elsewhere",
        job='name = "../mine"\n' + A,
        says='job.toml:1: name = \'../mine\': use up to 100 letters, digits, ".", "_" and "-", not starting with "."; without a name in the job file, that of the file is taken',
    ),
    Case(
        what="a mistake in a preset that nobody uses today",
        job=A + "[preset.small.subspace]\nrank = -3\n",
        says="job.toml:3: preset.small: subspace.rank = -3: must be at least 1 and below 2147483648",
    ),
    Case(
        what="several mistakes at once",
        argv="refine job.toml --set compute.device=tpu",
        job=A
        + "\n[subspace]\nrnak = 5\n\n[solver]\nmu = -1.0\ntype = 3\n[preset.small.held_out]\nfraction = 2.0\n",
        says="job.toml has 4 mistakes:\n  job.toml:4: unknown key 'subspace.rnak'; did you mean 'rank'?\n  job.toml:8: solver.type = 3: a string is expected\n  job.toml:10: preset.small: held_out.fraction = 2.0: at most 0.9, or nothing is left to fit\n  --set: compute.device = 'tpu': did you mean 'cpu'? use one of 'auto', 'cpu', 'cuda'",
    ),
    Case(
        what="batches with L-BFGS",
        argv="train job.toml",
        job='problem = "poisson"\n[train]\nsteps = 1\noptimizer = "lbfgs"\nbatch_size = 4\n',
        says="job.toml:5: train.batch_size = 4: leave it out with L-BFGS, whose line searches need the same points in every step",
    ),
]
