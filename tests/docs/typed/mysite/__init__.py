"""The project of the documentation, with annotations. `tests/docs/test_types.py` checks its types as a user of the package would."""
