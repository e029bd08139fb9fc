"""Reads finished runs, compares them with published figures, and measures and draws trained nets."""
