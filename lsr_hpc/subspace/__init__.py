"""Subspaces of parameter space: orthonormal bases V of shape (P, k), distributed over the ranks."""
