"""The error that the command line prints as one line."""

__all__ = ["CliError"]


class CliError(Exception):
    """Something that the user can put right: an unknown name, a broken file, a missing package."""
