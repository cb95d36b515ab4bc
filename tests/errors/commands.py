"""Words of the command line."""

from __future__ import annotations

from tests.errors.case import Case

CASES = [
    Case(
        what="a command that is not there",
        argv="refien job.toml",
        says="there is no command 'refien', did you mean refine?; see `lsr-hpc --help`",
    ),
    Case(
        what="an option that is not there",
        argv="refine job.toml --preste small",
        says="refine has no option --preste, did you mean --preset?; see `lsr-hpc refine --help`",
    ),
    Case(
        what="an option of another command",
        argv="refine job.toml --ranks 2",
        says="refine has no option --ranks, which is an option of run, resume, campaign, logs; see `lsr-hpc refine --help`",
    ),
    Case(
        what="no job file",
        argv="refine",
        says="the following arguments are required: JOB; see `lsr-hpc refine --help`",
    ),
    Case(
        what="two options that contradict each other",
        argv="refine job.toml -q -v",
        says="argument -v/--verbose: not allowed with argument -q/--quiet; see `lsr-hpc refine --help`",
    ),
    Case(
        what="a number that is none",
        argv="predict run --input x.npy --output y.npy --batch ten",
        says="argument --batch: 'ten' is no positive whole number; see `lsr-hpc predict --help`",
    ),
    Case(
        what="a number out of range",
        argv="predict run --input x.npy --output y.npy --batch 0",
        says="argument --batch: '0' is no positive whole number; see `lsr-hpc predict --help`",
    ),
    Case(
        what="`--set` without a value",
        argv="refine job.toml --set subspace.rank",
        says="--set 'subspace.rank' is not understood: write --set section.key=value",
    ),
    Case(
        what="`--set` of a key that is not there",
        argv="refine job.toml --set subspace.rnak=3",
        says="--set: unknown key 'subspace.rnak'; did you mean 'rank'?",
    ),
    Case(
        what="`--set` of a value of another type",
        argv="refine job.toml --set subspace.rank=many",
        says="--set: subspace.rank = 'many': an integer is expected",
    ),
    Case(
        what="a preset that is not there",
        argv="refine job.toml --preset smal",
        job='problem = "antiderivative"\n[preset.small.subspace]\nrank = 9\n',
        says="job.toml has no preset 'smal'; did you mean 'small'?",
    ),
    Case(
        what="negative ranks",
        argv="run job.toml --ranks -1",
        says="--set: run.ranks = -1: must be at least 1 and below 2147483648",
    ),
    Case(
        what="an option of PETSc without its dash",
        argv="refine job.toml -- lsr_svd_type cross",
        says="PETSc option 'lsr_svd_type' behind --: options begin with '-', as -lsr_svd_type",
    ),
    Case(
        what="an option of PETSc without our prefix",
        argv="refine job.toml -- -svd_type cross",
        says="PETSc option '-svd_type' behind --: the solvers here have the prefix lsr_; write -lsr_svd_type",
    ),
    Case(
        what="a type that PETSc does not have",
        argv="refine job.toml -- -lsr_svd_type best",
        apart=True,
        says="PETSc refuses the options -lsr_svd_type best: Unknown SVD type given: best; their values are those of your PETSc and SLEPc, see -help",
    ),
    Case(
        what="a type that cannot work with products of J",
        argv="refine job.toml -- -lsr_ksp_type gmres",
        apart=True,
        says="-lsr_ksp_type gmres cannot work with J, which is rectangular and known by its products alone: use lsqr, cgls",
    ),
    Case(
        what="`run` started by mpiexec",
        argv="run job.toml",
        environment={"OMPI_COMM_WORLD_RANK": "0"},
        says="lsr-hpc run starts MPI itself and must not be started by mpiexec or srun (OMPI_COMM_WORLD_RANK is set): leave that out; in a batch job start it from the script",
    ),
    Case(
        what="two processes, each alone in its MPI world",
        argv="refine job.toml",
        environment={"OMPI_COMM_WORLD_SIZE": "2"},
        code=76,
        says="the launcher started 2 processes, but each of them is alone in its MPI world: the launcher belongs to another MPI than mpi4py, which uses ...; start with that library's mpiexec (`lsr-hpc doctor` names it)",
    ),
    Case(
        what="a launcher that is not installed",
        argv="run job.toml --out out",
        environment={"PATH": "/nowhere"},
        code=76,
        says="run.launcher = 'mpiexec' needs setpriv, env, mpiexec, which is not on PATH: see `lsr-hpc doctor`",
    ),
    Case(
        what="`submit` away from a cluster",
        argv="submit job.toml --out out",
        environment={"PATH": "/nowhere"},
        code=76,
        says="sbatch is not on PATH: is this a node of a SLURM cluster? Without one use `lsr-hpc run` or `refine`",
    ),
    Case(
        what="a part of a campaign that cannot be",
        argv="campaign job.toml --part 3/3",
        job='problem = "antiderivative"\n[campaign.axes]\n"subspace.rank" = [1, 2]\n',
        says="--part '3/3': write I/N with I from 0 to N - 1, such as 0/16",
    ),
    Case(
        what="a campaign of a job without members",
        argv="campaign job.toml --out out",
        says="job 'job' has no section [campaign]: name the settings in which its members differ, such as [campaign.axes] problem.instance = {range = [0, 299]}",
    ),
    Case(
        what="a site profile that is not there",
        argv="submit job.toml --site nowhere",
        environment={"XDG_CONFIG_HOME": "HERE"},
        says="--site 'nowhere': there is no such profile in HERE/lsr-hpc/sites; there are: none; write nowhere.toml there with sections [slurm] and [run]",
    ),
    Case(
        what="`init` for a problem that is not there",
        argv="init poison",
        says="problem 'poison' is not shipped: use one of advection, ..., or FILE.py:FUNCTION",
    ),
    Case(
        what="`init` over a file",
        argv="init poisson --out job.toml",
        says="job.toml is there already: name another file by --out",
    ),
    Case(
        what="`init` of a file without a suffix",
        argv="init poisson --out job",
        says="--out job: name a file that ends in .toml",
    ),
    Case(
        what="`train` of a problem of your own",
        argv="train job.toml",
        says="problem.function = 'HERE/mine.py:build' is your own: train it with your own program; `lsr-hpc train` re-makes advection, ...",
    ),
    Case(
        what="`train` of a job without a section [train]",
        argv="train job.toml",
        job='problem = "poisson"\n',
        says="the job has no section [train]: add one with the number of steps",
    ),
    Case(
        what="`train` over weights that are not its own",
        argv="train job.toml --out w.safetensors",
        job='problem = "poisson"\n[train]\nsteps = 1\n',
        given=lambda home: (home / "w.safetensors").write_text("mine"),
        says="--out w.safetensors: it or w.json beside it exists and was not made by `lsr-hpc train`; name another file",
    ),
    Case(
        what="a report of several runs without a place",
        argv="report run run2",
        says="a report of several runs needs a place of its own: name it with --out DIR",
    ),
]
