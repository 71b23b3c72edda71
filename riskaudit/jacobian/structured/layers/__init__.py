"""The layers, a file for each family: the contraction of a layer and the functions of torch that it stands for."""

from importlib import import_module
from pkgutil import iter_modules

# Importing a file registers its layers.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
