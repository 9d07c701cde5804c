"""The recipes there are."""

from __future__ import annotations

from hvd.errors import HvdError
from hvd.images.recipes.busybox import BusyboxRecipe
from hvd.images.recipes.debian import DebianRecipe
from hvd.images.recipes.linux import LinuxRecipe
from hvd.images.recipes.linux_pv import LinuxPvRecipe
from hvd.images.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (LinuxRecipe(), LinuxPvRecipe(), DebianRecipe(), BusyboxRecipe())}


def find(name: str) -> Recipe:
    """Raises HvdError RECIPE_UNKNOWN."""
    try:
        return RECIPES[name]
    except KeyError:
        raise HvdError("RECIPE_UNKNOWN", recipe=name[:100], known=", ".join(sorted(RECIPES))) from None
