"""The reduced least-squares problem min_c ||r0 + (J V) c||, and iterative solvers for the full one."""
