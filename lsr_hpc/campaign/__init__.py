"""Campaigns: one job carried out for many members, each of them a run directory of its own."""
