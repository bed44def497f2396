"""Write docs/works_with.md."""

from tests.works_with import document
from tests.works_with.table import PAGE

PAGE.write_text(document())
