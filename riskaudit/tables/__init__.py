"""Tables: what a model's inputs are made of, column by column. Nothing here needs torch.

``columns`` are the kinds of columns and the inputs they become, ``encoding`` the columns of one model, ``declaration``
the TOML file that a user writes them in, ``inference`` a proposal of one from data.
"""

from riskaudit.tables.columns import Category, Cells, Column, IgnoredColumn, NumberColumn
from riskaudit.tables.declaration import read_encoding, save_encoding, written
from riskaudit.tables.encoding import CategoryInputs, NumberInput, TableEncoding
from riskaudit.tables.inference import encoding_of

__all__ = [
    "Category",
    "CategoryInputs",
    "Cells",
    "Column",
    "IgnoredColumn",
    "NumberColumn",
    "NumberInput",
    "TableEncoding",
    "encoding_of",
    "read_encoding",
    "save_encoding",
    "written",
]
