"""The test suite; `python -m tests` runs it on every backend."""
