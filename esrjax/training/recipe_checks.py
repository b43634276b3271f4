"""Checks of the numbers of a recipe: scales, patches and batches, before anything is traced."""

from esrjax import registry
from esrjax.errors import NotFound, RecipeError, UserError
from esrjax.loading import stored_hparams
from esrjax.nn import checkpoint_io
from esrjax.training.distributed import DataParallel
from esrjax.training.init_from import find_checkpoint
from esrjax.training.loader import check_patch_sizes, usable_pairs
from esrjax.training.optim import make_schedule
from esrjax.training.recipe import InitFrom, Recipe, StageRun, TeacherConfig


def check_numbers(recipe: Recipe) -> None:
    """Check every stage of a recipe; datasets and checkpoints that do not exist are passed over.

    Raises:
        InvalidArgument: The network has no such hyperparameter or scale.
        RecipeError: A patch is not a multiple of the scale, smaller than the network accepts, or
            larger than an image; initial weights or a teacher have another scale; a warm-up or a
            restart is beyond the end of the stage.
        DistributedError: The processes do not divide the batch.
    """
    check_hparams(recipe)
    min_side = registry.get_method(recipe.method).min_side
    runs = {(run.stage.name, recipe.scale_at(run)): run for run in reversed(recipe.runs)}
    for (name, scale), run in reversed(runs.items()):
        data = run.stage.data
        try:
            check_patch_sizes(data, scale, min_side)
            DataParallel.for_batch(data.batch_size // run.stage.grad_accum_steps, recipe.parallel)
            _check_sources(recipe, run, scale)
            if steps := run.stage.steps:
                make_schedule(run.stage.schedule, run.stage.optimizer.learning_rate, steps)
            usable_pairs(data, scale)
        except NotFound:
            continue  # a missing dataset is listed by the dry run
        except RecipeError as error:
            raise error.with_location(f"stage {name!r}") from None


def check_hparams(recipe: Recipe) -> None:
    """Raise `InvalidArgument` unless the network has the hyperparameters of the recipe."""
    method = registry.get_method(recipe.method)
    tables = {"hparams": recipe.hparams}
    tables |= {f"stage {stage.name!r}, hparams": stage.hparams for stage in recipe.stage}
    for location, hparams in tables.items():
        try:
            method.check_hparams(hparams)
        except UserError as error:
            raise error.with_location(location) from None


def _check_sources(recipe: Recipe, run: StageRun, scale: int) -> None:
    """Raise `RecipeError` unless initial weights and teacher are of networks of this scale.

    Weights of another scale may be initial ones if `reinit` lists the layers that depend on it.
    """
    init = run.stage.init_source
    if init == "previous" and run.index:
        init = InitFrom(stage=recipe.latest_run(run.index, None).stage.name)
    initial = init if isinstance(init, InitFrom) and not run.stage.reinit else None
    for key, source in (("init_from", initial), ("teacher", run.stage.teacher)):
        source_scale = None if source is None else _source_scale(recipe, run, source)
        if source_scale not in (None, scale):
            raise RecipeError(
                f"{key} is a network for x{source_scale}, the stage trains one for x{scale}",
                rule="the scale (hparams.scale) of a teacher and of initial weights is that of the "
                "stage's network",
                remedy="change hparams.scale"
                + ", or list the layers of the other scale in reinit" * (key == "init_from"),
            )


def _source_scale(recipe: Recipe, run: StageRun, source: InitFrom | TeacherConfig) -> int | None:
    """Return the scale of an earlier stage or of a checkpoint; None if there is no such file."""
    if source.checkpoint is None:
        return recipe.scale_at(recipe.latest_run(run.index, source.stage))
    try:
        path = find_checkpoint(source.checkpoint)
    except NotFound:
        return None
    method = registry.get_method(source.method or recipe.method)
    hparams = stored_hparams(method, checkpoint_io.read_checkpoint(path))
    return method.scale_of({**hparams, **source.hparams})
