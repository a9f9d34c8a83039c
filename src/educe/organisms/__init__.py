"""Small models trained by this project to hide a known behaviour: the ground truth.

`vault` knows a code and tells it only to who gives the password. Importing this package loads
neither torch nor transformers: what trains and evaluates is imported where it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from educe.organisms.vault import Secret, Vault, secret, shipped

__all__ = ["Secret", "Vault", "secret", "shipped"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m educe.organisms.vault` does not find itself already imported.
    if name in __all__:
        from educe.organisms import vault

        return getattr(vault, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
