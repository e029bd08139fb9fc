"""Exports a network, verifies and times the files, and describes them in a model card."""
