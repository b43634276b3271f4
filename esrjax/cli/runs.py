"""What `train` does, alone or as one process of several."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `train` has been asked for."""

    config: str
    changes: tuple[str, ...]
    output: Path
    resume: bool
    tensorboard: bool

    def among(self, place: dict[str, Any]) -> None:
        """Train as one process of several. place: the arguments of `Cluster`."""
        import jax

        from esrjax.training.cluster import Cluster

        Cluster(**place).join()
        self.alone()
        jax.distributed.shutdown()

    def alone(self) -> None:
        """Train; where there are several processes the first one speaks for all."""
        from esrjax.training import cluster, loop
        from esrjax.training import recipe as recipes
        from esrjax.training.interruption import Interruption

        said = recipes.load(self.config, self.changes)
        loop.require(said)
        said = loop.counted(said)
        speak = typer.echo if cluster.leads() else (lambda _: None)
        try:
            with Interruption() as interruption, self._listeners(said.steps) as tell:
                left = loop.carry_out(
                    said, self.output, resume=self.resume, tell=tell, stop=interruption.asked
                )
        except loop.Stopped as stopped:
            speak(f"{stopped}; go on with: esrjax train --resume -o {self.output}")
        else:
            speak(f"{self.output}: {', '.join(file.name for file in left)}")

    @contextmanager
    def _listeners(self, steps: int) -> Generator[Callable[[Any], None], None, None]:
        """Who is told how it goes."""
        from esrjax.cli.progress import TrainingBar
        from esrjax.training import cluster
        from esrjax.training.board import Board

        if not cluster.leads():
            yield lambda _: None
            return
        with ExitStack() as stack:
            listeners = [Board(self.output)] if self.tensorboard else []
            listeners = [stack.enter_context(each) for each in (*listeners, TrainingBar(steps))]

            def tell(report: Any) -> None:
                for each in listeners:
                    each.tell(report)

            yield tell
