"""What the callback works with: one table of rows, run by tests/test_works_with.py and shown in docs/works_with.md.

`python -m tests.works_with` writes the docs page anew.
"""

from tests.works_with.table import ROWS, Row, document

from . import gradients, library, lightning_features, models, parameters  # noqa: F401  (they register their rows)

__all__ = ["ROWS", "Row", "document"]
