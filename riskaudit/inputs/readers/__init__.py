"""Readers of files: one format each."""
