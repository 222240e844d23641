"""Fingerprints: what values, functions and files are, as hashes."""
