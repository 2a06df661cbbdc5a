"""The version: read by pyproject.toml, CMakeLists.txt and fastres.__version__."""

__version__ = "0.1.0"
