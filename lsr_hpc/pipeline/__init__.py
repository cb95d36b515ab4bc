"""The pipeline around rounds: a controller that never starts MPI, and steps that are MPI programs.

The two know each other through files only; see ``docs/architecture.md``.
"""
