"""The residual Jacobian J as an operator on blocks of vectors, distributed by rows over MPI ranks."""
