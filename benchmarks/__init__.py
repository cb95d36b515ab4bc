"""Side-by-side measurements of lsr_hpc and other software: ``python -m benchmarks --help``."""
