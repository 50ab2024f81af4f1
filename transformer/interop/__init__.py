"""Models come in and go out, and each way is held to give the same translations."""

from importlib import import_module
from types import ModuleType

from transformer.errors import UserError


def needs(module: str, extra: str) -> ModuleType:
    """Imports an optional package.

    Args:
        module: Its name in Python.
        extra: The extra of this project that installs it.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module} cannot be imported ({error}): pip install 'transformer-recipes[{extra}]'"
        ) from None
