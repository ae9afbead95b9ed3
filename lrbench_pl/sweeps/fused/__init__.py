"""Fused sweeps: the jobs of a sweep that differ only in numbers train as one program."""
