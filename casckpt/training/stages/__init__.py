"""Stages: work through many items, each done once; `map`, and the results."""
