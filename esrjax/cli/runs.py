"""The work of `train`: in a single process, or as one process of a distributed run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from esrjax.training.meter import TrainReport


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """The arguments of `esrjax train`.

    Attributes:
        recipe: A shipped recipe or a file.
        overrides: Changes of the recipe, such as `seed=5`.
        output: The run directory.
        resume: Whether to resume from the last checkpoint in the run directory.
        tensorboard: Whether to log metrics for TensorBoard, too.
    """

    recipe: str
    overrides: tuple[str, ...]
    output: Path
    resume: bool
    tensorboard: bool

    def train_distributed(self, cluster: dict[str, Any]) -> None:
        """Train as one of several processes; `cluster` holds the arguments of `Cluster`."""
        import jax

        from esrjax.training.cluster import Cluster

        Cluster(**cluster).join()
        self.train_single()
        jax.distributed.shutdown()

    def train_single(self) -> None:
        """Train; in a distributed run only the main process prints."""
        from esrjax.training import cluster, loop
        from esrjax.training import recipe as loader
        from esrjax.training.interruption import PreemptionHandler

        recipe = loader.load(self.recipe, self.overrides)
        loop.check_recipe(recipe)
        recipe = loop.resolve_epochs(recipe)
        echo = typer.echo if cluster.is_main_process() else (lambda _: None)
        try:
            with (
                PreemptionHandler() as preemption,
                self._reporting(recipe.total_steps) as on_report,
            ):
                files = loop.run_stages(
                    recipe,
                    self.output,
                    resume=self.resume,
                    on_report=on_report,
                    should_stop=preemption.should_stop,
                )
        except loop.TrainingStopped as stopped:
            echo(f"{stopped}; resume with: esrjax train --resume -o {self.output}")
        else:
            echo(f"{self.output}: {', '.join(file.name for file in files)}")

    @contextmanager
    def _reporting(self, total_steps: int) -> Generator[Callable[[TrainReport], None]]:
        """Yield the callback for reports: the progress bar, and TensorBoard where requested."""
        from esrjax.cli.progress import TrainingBar
        from esrjax.training import cluster
        from esrjax.training.board import TensorBoardLogger

        if not cluster.is_main_process():
            yield lambda _: None
            return
        with ExitStack() as stack:
            loggers = [TensorBoardLogger(self.output)] if self.tensorboard else []
            loggers = [
                stack.enter_context(logger) for logger in (*loggers, TrainingBar(total_steps))
            ]

            def on_report(report: TrainReport) -> None:
                for logger in loggers:
                    logger.log(report)

            yield on_report
