"""What the sub-commands of ``lsr-hpc`` do, one module each."""
