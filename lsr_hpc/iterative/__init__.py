"""Iterative LSR: rounds of refinement and alignment of the network to what the refinement found."""
