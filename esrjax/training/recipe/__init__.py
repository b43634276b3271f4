"""Schema of a recipe: frozen dataclasses whose values are read from TOML."""

from esrjax.training.recipe.data import Augment, Data, PatchPhase
from esrjax.training.recipe.objective import (
    DistillationTerm,
    ImageTerm,
    LossTerm,
    LossWeight,
    TeacherConfig,
)
from esrjax.training.recipe.optimizer import Optimizer, Schedule
from esrjax.training.recipe.recipe import RECIPE, Recipe, Repeat, StageRun, to_json
from esrjax.training.recipe.source import (
    RecipeError,
    UnknownRecipe,
    find_recipe_file,
    load,
    parse,
    shipped_recipes,
)
from esrjax.training.recipe.stage import InitFrom, LoRA, Prune, Stage, Validation

__all__ = [
    "RECIPE",
    "Augment",
    "Data",
    "DistillationTerm",
    "ImageTerm",
    "InitFrom",
    "LoRA",
    "LossTerm",
    "LossWeight",
    "Optimizer",
    "PatchPhase",
    "Prune",
    "Recipe",
    "RecipeError",
    "Repeat",
    "Schedule",
    "Stage",
    "StageRun",
    "TeacherConfig",
    "UnknownRecipe",
    "Validation",
    "find_recipe_file",
    "load",
    "parse",
    "shipped_recipes",
    "to_json",
]
