"""Quantize: which scheme for which weight, how it is stored, and what that costs in accuracy."""
