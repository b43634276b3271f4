"""The teacher of a distillation, and forward passes that also return outputs of submodules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax import registry
from esrjax.errors import NotFound
from esrjax.method import Method
from esrjax.nn.hooks import taps
from esrjax.training.init_from import LoadedModel, StageModelLoader, load_model
from esrjax.training.recipe import Recipe, StageRun, TeacherConfig

GraphDef = nnx.GraphDef[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The frozen teacher network of a stage.

    Attributes:
        graphdef: Graph definition of the network.
        state: Its variables.
        method: The method of the network.
        tap_paths: Paths of the submodules whose outputs are returned.
    """

    graphdef: GraphDef
    state: Any
    method: Method
    tap_paths: tuple[str, ...]

    @classmethod
    def create(cls, model: LoadedModel, cfg: TeacherConfig) -> Teacher:
        """Return the teacher of a model, in deploy form and evaluation mode."""
        net = model.to_deploy_form().net
        net.eval()
        graphdef, state = nnx.split(net)
        method, tap_paths = registry.get_method(model.method), tuple(cfg.taps.values())
        return cls(graphdef=graphdef, state=state, method=method, tap_paths=tap_paths)

    def __call__(self, state: Any, lr: Array) -> tuple[Array, list[Array]]:
        """Return the output image and the features of the taps, without gradients.

        Args:
            state: Variables of the network, as an argument so that they are no constants of the
                compiled step.
            lr: (n, h, w, 3), values in [0, 1].

        Returns:
            SR (n, s·h, s·w, 3), values in [0, 1], and one feature array per tap.

        Raises:
            NotFound: A tap is not the path of a submodule that runs.
        """
        net = nnx.merge(self.graphdef, state)
        x = lr * jnp.asarray(self.method.data_range, lr.dtype)
        sr, features = forward_with_taps(net, x, self.tap_paths)
        return lax.stop_gradient((sr / self.method.data_range, features))


def forward_with_taps(net: nnx.Module, x: Array, paths: Sequence[str]) -> tuple[Array, list[Array]]:
    """Return the output of a network, and the outputs of some of its submodules.

    Args:
        net: The network.
        x: Its input.
        paths: Paths of submodules; `block_6:1` is the second output of `block_6`.

    Raises:
        NotFound: A path is not that of a submodule that runs; lists those that do.
    """
    if not paths:
        return net(x), []  # pyright: ignore[reportCallIssue] # networks are callable
    module_paths = {path.partition(":")[0] for path in paths}
    sr, outputs = taps(net, x, module_paths)
    if not module_paths <= outputs.keys():
        _, outputs = taps(net, x)  # once more with all of them, for the error
    return sr, [_tap_output(path, outputs) for path in paths]


def _tap_output(path: str, outputs: Mapping[str, Any]) -> Array:
    module_path, _, index = path.partition(":")
    output = outputs.get(module_path)
    if isinstance(output, tuple):
        output = dict(enumerate(output)).get(int(index or 0))
    if output is None:
        raise NotFound(
            f"Unknown tap {path!r}",
            rule="a tap is the path of a submodule that runs, PATH:N for the N-th of its outputs",
            location=", ".join(list(outputs)[:16]),
            remedy="choose one of the listed paths",
        )
    return output


def load_teacher(recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> Teacher | None:
    """Return the teacher of a stage, None if it has none.

    Args:
        recipe: The recipe.
        run: The stage run.
        load_stage: Returns the result of an earlier run.

    Raises:
        UserError: The teacher's checkpoint does not exist, or does not match its method.
    """
    cfg = run.stage.teacher
    if cfg is None:
        return None
    if cfg.stage is not None:
        return Teacher.create(load_stage(recipe.latest_run(run.index, cfg.stage)), cfg)
    assert cfg.method is not None and cfg.checkpoint is not None  # the schema requires them
    return Teacher.create(load_model(cfg.method, cfg.checkpoint, cfg.hparams), cfg)
