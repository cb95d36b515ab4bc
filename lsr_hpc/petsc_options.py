"""Options of PETSc and SLEPc that the user hands on: refused if they make no sense, named if nobody asks.

PETSc itself reads options where an object is set up, so that a wrong type would end a run half-way, and a
misspelt name is never noticed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from lsr_hpc.errors import JobError
from lsr_hpc.petsc import destroying, libraries

__all__ = ["PREFIX", "check_option_words", "check_options", "unused_options"]

PREFIX = "lsr_"
# Names that only an object of ours could ask for, which does so with the prefix.
_WITHOUT_PREFIX = ("svd_", "bv_", "ksp_", "pc_", "ds_", "eps_", "st_")
# Types that do with products of J; the first of each is the one that the probes start from.
_USABLE = {
    "svd": ("randomized", "trlanczos", "lanczos", "cross", "scalapack"),
    "ksp": ("lsqr", "cgls"),
    "pc": ("none",),
}


def check_option_words(words: Sequence[str]) -> None:
    """Refuse words that PETSc would skip in silence; needs no PETSc.

    Args:
        words: What stands behind ``--``.

    Raises:
        JobError: If the first word is a value, or an option lacks our prefix.
    """
    if words and not words[0].startswith("-"):
        raise JobError(f"PETSc option {words[0]!r} behind --: options begin with '-', as -lsr_svd_type")
    for name in _names(words):
        if name.startswith(_WITHOUT_PREFIX):
            raise JobError(
                f"PETSc option '-{name}' behind --: the solvers here have the prefix {PREFIX}; "
                f"write -{PREFIX}{name}"
            )


def check_options(words: Sequence[str]) -> None:
    """Let an object of each kind read the options once, before any work.

    Args:
        words: What stands behind ``--``; already known to PETSc, together with ``PETSC_OPTIONS``.

    Raises:
        JobError: With what PETSc says about an unknown type or a value that is none; or if a type cannot work
            with J.

    Not collective, although PETSc must have been started: the objects live on this rank alone.
    """
    PETSc, SLEPc = libraries()
    svd, bv, ksp = (kind().create(PETSc.COMM_SELF) for kind in (SLEPc.SVD, SLEPc.BV, PETSc.KSP))
    with destroying(svd, bv, ksp):
        svd.setType(_USABLE["svd"][0])
        ksp.setType(_USABLE["ksp"][0])
        ksp.getPC().setType(_USABLE["pc"][0])
        for probe in (svd, bv, ksp):
            probe.setOptionsPrefix(PREFIX)
            try:
                probe.setFromOptions()
            except (PETSc.Error, SystemError) as error:
                # slepc4py hands PETSc's error over as itself, or as the cause of a SystemError.
                said = str(error.__cause__ or error).strip().splitlines()[-1].partition("] ")[2]
                raise JobError(
                    f"PETSc refuses the options {' '.join(words) or 'in PETSC_OPTIONS'}: {said}; "
                    "their values are those of your PETSc and SLEPc, see -help"
                ) from error
        types = {"svd": svd.getType(), "ksp": ksp.getType(), "pc": ksp.getPC().getType()}
    for kind, chosen in types.items():
        if chosen not in _USABLE[kind]:
            raise JobError(
                f"-{PREFIX}{kind}_type {chosen} cannot work with J, which is rectangular and known by its "
                f"products alone: use {', '.join(_USABLE[kind])}"
            )
    # Reading has marked them as used. Set again they are new, and tell at the end who asked for them.
    options = PETSc.Options()
    for name in _names(words):
        if options.hasName(name):
            value = options.getString(name, "")
            options.delValue(name)
            options.setValue(name, value or None)


def unused_options(words: Sequence[str]) -> list[str]:
    """Options with our prefix that nothing has asked for.

    Args:
        words: What stands behind ``--``.

    Returns:
        Their names, as given.
    """
    PETSc, _ = libraries()
    # petsc4py has no binding for it; the symbol is that of the PETSc library it is linked to.
    asked = ctypes.CDLL(PETSc.__file__).PetscOptionsUsed
    unused = []
    for name in _names(words):
        used = ctypes.c_int(0)
        asked(None, ctypes.c_char_p(name.encode()), ctypes.byref(used))
        if name.startswith(PREFIX) and not used.value:
            unused.append(f"-{name}")
    return unused


def _names(words: Sequence[str]) -> list[str]:
    """Names without the dash; negative numbers are values."""
    return [w.lstrip("-") for w in words if w.startswith("-") and not w[1:2].isdigit()]
