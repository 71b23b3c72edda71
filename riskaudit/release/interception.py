"""Contexts in which calls of torch functions are seen, or replaced."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode
from typing_extensions import override


class Interception(TorchFunctionMode):
    """Within this context every call of a torch function goes through `call`; calls made in there don't."""

    @abstractmethod
    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of ``function`` with these arguments, or what is to stand for it."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, kwargs or {})
