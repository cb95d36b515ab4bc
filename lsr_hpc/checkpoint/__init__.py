"""Checkpoints: snapshots on disk under digests, readable on any number of MPI ranks."""
