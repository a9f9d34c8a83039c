"""Benchmarks with a known answer: which family of perturbations brings out what was hidden.

Speed is measured elsewhere, in `benchmarks/` beside the package; here, whether anything is found.
"""
