"""Readers of files that may be hostile: nothing in them is executed, none costs much memory."""

__all__ = ["checkpoints", "files", "pickles", "yaml_files"]
