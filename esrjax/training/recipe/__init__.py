"""What a training can say: frozen dataclasses are the schema, TOML is the value."""

from esrjax.training.recipe.data import Augment, Data, Phase
from esrjax.training.recipe.objective import Lesson, PictureTerm, Teacher, Term, Weight
from esrjax.training.recipe.optimiser import Optimiser, Schedule
from esrjax.training.recipe.recipe import RECIPE, Recipe, Repeat, Run, to_json
from esrjax.training.recipe.source import RecipeError, UnknownRecipe, load, parse
from esrjax.training.recipe.stage import LoRA, Prune, Stage, Start, Validation

__all__ = [
    "RECIPE",
    "Augment",
    "Data",
    "Lesson",
    "LoRA",
    "Optimiser",
    "Phase",
    "PictureTerm",
    "Prune",
    "Recipe",
    "RecipeError",
    "Repeat",
    "Run",
    "Schedule",
    "Stage",
    "Start",
    "Teacher",
    "Term",
    "UnknownRecipe",
    "Validation",
    "Weight",
    "load",
    "parse",
    "to_json",
]
