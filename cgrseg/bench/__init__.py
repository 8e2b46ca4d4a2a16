"""Measuring speed and memory of prediction (`cgrseg bench`): see docs/speed.md."""
