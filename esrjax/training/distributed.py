"""Multi-process training, the lock of a run's folder, data parallelism, and stops by a signal."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import jax
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrjax.errors import DistributedError, UnwritableFile, list_some, log_note
from esrjax.nn.compilation import jit
from esrjax.runtime import STOP_SIGNALS
from esrjax.training.recipe import Parallel
from esrjax.training.train_state import Objective, TrainStepFn, make_train_step

INIT_TIMEOUT_S = 60  # within which all processes must connect
HEARTBEAT_TIMEOUT_S = 30  # without a heartbeat, after which a process counts as dead
FSDP_MIN_SIZE = 1024  # values of an array, below which all devices have it whole
_AXIS = "data"
_SAME_SIGNAL_S = 0.5  # within which signals count as one: a terminal and a parent both send it


# --- processes ---


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """This process as a member of a group of processes.

    Fields that are None are detected from SLURM, Kubernetes, Open MPI or the TPU machine.

    Attributes:
        coordinator: `host:port` at which the first process listens.
        num_processes: Number of processes.
        process_id: Index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def join(self) -> None:
        """Connect to the other processes; call it before JAX initializes its devices.

        Raises:
            DistributedError: They do not connect.
        """
        explicit = None not in (self.coordinator, self.num_processes, self.process_id)
        if explicit and self.process_id == 0:
            _check_port(str(self.coordinator))
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                cluster_detection_method="deactivate" if explicit else None,
                initialization_timeout=INIT_TIMEOUT_S,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise DistributedError(
                f"cannot connect to the other processes: {reason}",
                rule=f"all processes start within {INIT_TIMEOUT_S} s, with the same coordinator "
                "and number of processes, each with its own id; process 0 listens at the "
                "coordinator",
                location=self.coordinator,
                remedy="pass --coordinator HOST:PORT --num-processes N --process-id I, or only "
                "--distributed on SLURM or Kubernetes (docs/cluster.md)",
            ) from error


def _check_port(coordinator: str) -> None:
    """Raise `DistributedError` if process 0 cannot listen there; JAX would crash or share it."""
    _, _, port = coordinator.rpartition(":")
    try:
        number = int(port)
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("", number))
    except (OSError, ValueError, OverflowError) as error:
        raise DistributedError(
            f"process 0 cannot listen at port {port!r}: {error}",
            rule="process 0 listens at the coordinator's port, which no other program and no other "
            "training uses; one process of a training has the number 0",
            location=coordinator,
            remedy="choose a free port in --coordinator, or another --process-id",
        ) from error


def is_main_process() -> bool:
    """Return whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def all_agree(value: bool) -> bool:
    """Return whether the value is true on all processes."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def broadcast_from_main(value: float) -> float:
    """Return the value of process 0, on all processes."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(value))


# --- lock of a run's folder ---


@dataclass(frozen=True, kw_only=True)
class LockOwner:
    """The process that trains in a folder, as its lock file names it.

    Attributes:
        host: Name of the host.
        pid: Process ID.
        start_time: Boot of the host and start of the process since then; "" where unknown.
        job: SLURM's job ID, if any.
        restarts: How often SLURM has requeued the job.
    """

    host: str
    pid: int
    start_time: str = ""
    job: str = ""
    restarts: int = 0

    @classmethod
    def current(cls) -> LockOwner:
        """Return this process."""
        return cls(
            host=platform.node(),
            pid=os.getpid(),
            start_time=_start_time(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        )

    def is_gone(self, current: LockOwner, *, has_kernel_lock: bool) -> bool:
        """Return whether the process has ended, as far as `current` can know.

        Args:
            current: This process.
            has_kernel_lock: Whether this process holds the lock of the kernel, which the owner, if
                it lived on this host, would hold.
        """
        if self.host == current.host:
            return (
                has_kernel_lock or not self.start_time or _start_time(self.pid) != self.start_time
            )
        return bool(self.job) and self.job == current.job and self.restarts < current.restarts


def _start_time(pid: int) -> str:
    """Return what tells a process from another one with the same ID; "" if there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot} {fields[19]}"


@contextmanager
def lock_run(folder: Path) -> Generator[None]:
    """Hold the file `lock` in a run's folder, so that one training at a time writes there.

    The kernel frees the lock of a process that dies. Its file names host, process and start: they
    decide where the file system has no locks, or the process was on another host. The folder is
    created; if nothing else was written to it, it is removed again.

    Raises:
        UnwritableFile: Another training holds the lock, or the folder cannot be written to.
    """
    if not is_main_process():
        yield
        return
    path, current = folder / "lock", LockOwner.current()
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, has_kernel_lock = _open_lock(path)
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        owner = _read_owner(file)
        if owner and not owner.is_gone(current, has_kernel_lock=has_kernel_lock):
            raise _is_locked(path, owner)
        if owner:
            log_note(f"{path}: process {owner.pid} on {owner.host} has ended without a word")
        try:
            _write_owner(file, current, folder)
            yield
        finally:
            with suppress(OSError):  # a folder is not empty, or the disk is broken
                path.unlink(missing_ok=True)
                for parent in new_folders:
                    parent.rmdir()


def _open_lock(path: Path) -> tuple[IO[str], bool]:
    """Return the open file, and whether the kernel has locked it; raise if another process did."""
    while True:
        file, has_kernel_lock = path.open("a+", encoding="utf-8", errors="replace"), True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise _is_locked(path, _read_owner(file)) from error
        except OSError:
            has_kernel_lock = False
        with suppress(OSError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file, has_kernel_lock
        file.close()  # its owner removed it meanwhile


def _read_owner(file: IO[str]) -> LockOwner | None:
    """Return the owner that a lock file names; None if it is empty or damaged."""
    file.seek(0)
    try:
        return LockOwner(**json.loads(file.read(10_000)))
    except (ValueError, TypeError, RecursionError):
        return None


def _write_owner(file: IO[str], owner: LockOwner, folder: Path) -> None:
    data, descriptor = json.dumps(asdict(owner)).encode(), file.fileno()
    try:
        os.ftruncate(descriptor, 0)
        if os.write(descriptor, data) < len(data):  # not buffered: closing would fail once more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _is_locked(path: Path, owner: LockOwner | None) -> UnwritableFile:
    process = f"process {owner.pid} on {owner.host}" if owner else "another process"
    return UnwritableFile(
        f"{process} is training in this folder",
        rule="one training at a time writes a run",
        location=str(path),
        remedy="wait for it or stop it; if it is gone (its host was lost), delete the file",
    )


def _unwritable(folder: Path, error: OSError) -> UnwritableFile:
    return UnwritableFile(
        f"cannot write to the folder of the run: {error.strerror or error}",
        rule="the folder can be created, is writable and has free space",
        location=str(folder),
        remedy="free disk space, or choose another folder with -o",
    )


# --- devices ---


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The devices over which batches are sharded, and states replicated or sharded as well.

    Attributes:
        mesh: Mesh of one axis, "data"; with "fsdp" of an axis for each prime factor of the number
            of devices.
        parallel: "jit": one program over the mesh, and the state replicated; "fsdp": the same, with
            the state sharded; "pmap": one program per device.
    """

    mesh: Mesh
    parallel: Parallel

    @classmethod
    def for_batch(cls, batch_size: int, parallel: Parallel = "jit") -> DataParallel:
        """Return the largest set of devices that divides a batch, as many of every process.

        Args:
            batch_size: Images of one micro-batch, over all processes.
            parallel: How the step is parallelized.

        Raises:
            DistributedError: The processes do not divide the batch, or pmap with several processes.
        """
        num_processes = jax.process_count()
        if num_processes > 1 and parallel == "pmap":
            raise DistributedError(
                f"pmap does not support {num_processes} processes",
                rule="pmap shards a batch over the devices of one process",
                location="parallel",
                remedy='set parallel = "jit" or "fsdp"',
            )
        if batch_size % num_processes:
            raise DistributedError(
                f"{batch_size} images cannot be split evenly over {num_processes} processes",
                rule="data.batch_size / grad_accum_steps is a multiple of the number of processes",
                location="data.batch_size",
                remedy="change data.batch_size, or start another number of processes",
            )
        per_process = math.gcd(batch_size // num_processes, jax.local_device_count())
        devices = [
            device
            for process in range(num_processes)
            for device in jax.local_devices(process)[:per_process]
        ]
        return cls.over(devices, parallel)

    @classmethod
    def over(cls, devices: Sequence[Any], parallel: Parallel) -> DataParallel:
        """Return these devices.

        Args:
            devices: The devices, those of one process after those of another.
            parallel: How the step is parallelized.
        """
        axes = fsdp_axes(len(devices)) if parallel == "fsdp" else {_AXIS: len(devices)}
        mesh = Mesh(np.reshape(np.array(devices), tuple(axes.values())), tuple(axes))
        return cls(mesh=mesh, parallel=parallel)

    def __str__(self) -> str:
        """Number, kind and numbers of the devices, and which others are idle."""
        used = list(self.mesh.devices.flat)
        idle = [device for device in jax.devices() if device not in used]
        text = f"{_device_list(used)} {used[0].device_kind}, {self.parallel}"
        if not idle:
            return text
        rule = "the number of devices divides data.batch_size / grad_accum_steps"
        return f"{text}; idle: {_device_list(idle)}, as {rule}"

    def device_bytes(self, state: Any) -> int:
        """Return the bytes that the arrays of a state, or their shapes, take on each device."""
        sharding = self._fsdp_sharding if self.parallel == "fsdp" else lambda _: self._replicated
        return sum(
            math.prod(sharding(leaf).shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
        )

    def place(self, state: Any) -> Any:
        """Return the arrays of a training state on the devices, replicated or sharded."""
        if self.parallel != "fsdp":
            return self.replicate(state)
        return jax.device_put(state, jax.tree.map(self._fsdp_sharding, state))

    def replicate(self, tree: Any) -> Any:
        """Return the arrays of a pytree, replicated on every device."""
        return jax.device_put(tree, self._replicated)

    def replicate_host(self, array: np.ndarray[Any, Any]) -> jax.Array:
        """Return a host array, replicated on every device.

        Every process supplies its own copy. Unlike `device_put`, this does not compare the copies
        of all processes, which would send all images over the network.
        """
        return jax.make_array_from_callback(array.shape, self._replicated, array.__getitem__)

    def shard(self, batch: Any) -> Any:
        """Return the arrays of a pytree, sharded along their first axis.

        Each process supplies its own rows, which follow those of the process before.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)

    def local_replica(self, tree: Any) -> Any:
        """Return arrays of a state, whole, on the first device of this process.

        Sharded arrays are gathered, for which all processes call this.
        """
        tree = self._gather(tree) if self.parallel == "fsdp" else tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def compile_step(
        self, objective: Objective, optimizer: optax.GradientTransformation
    ) -> TrainStepFn:
        """Return the compiled training step.

        With "jit" and "fsdp", its first argument, the state, is donated: do not use it after the
        call.

        Args:
            objective: The loss.
            optimizer: The optax transformation.
        """
        if self.parallel == "jit":
            return jit(make_train_step(objective, optimizer), donate_argnums=0)
        if self.parallel == "fsdp":
            step = make_train_step(
                objective, optimizer, gather=self._constrain_whole, shard=self._constrain_sharded
            )
            return jit(step, donate_argnums=0)
        devices = list(self.mesh.devices.flat)
        pmapped = jax.pmap(
            make_train_step(objective, optimizer, axis=_AXIS),
            _AXIS,
            in_axes=(None, None, 0, 0),
            out_axes=(None, None),
            devices=devices,
        )

        def run_step(state: Any, teacher_state: Any, lr: Any, hr: Any) -> Any:
            shards = [images.reshape(len(devices), -1, *images.shape[1:]) for images in (lr, hr)]
            return pmapped(state, teacher_state, *shards)

        return run_step

    def _constrain_whole(self, tree: Any) -> Any:
        return lax.with_sharding_constraint(tree, self._replicated)

    def _constrain_sharded(self, tree: Any) -> Any:
        return lax.with_sharding_constraint(tree, jax.tree.map(self._fsdp_sharding, tree))

    @cached_property
    def _gather(self) -> Any:
        return jax.jit(lambda tree: tree, out_shardings=self._replicated)

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def _fsdp_sharding(self, leaf: Any) -> NamedSharding:
        return NamedSharding(self.mesh, fsdp_spec(leaf.shape, self.mesh.shape))


def _device_list(devices: Sequence[Any]) -> str:
    return f"{len(devices)} ({list_some([str(device.id) for device in devices], 8)})"


def fsdp_axes(num_devices: int) -> dict[str, int]:
    """Return the mesh axes of fully sharded data parallelism: name -> prime factor.

    Factors and not one axis, since few channel counts are multiples of the number of devices: a
    matrix of 180 x 180 is sharded over 8 devices as 4 x 2.
    """
    factors, rest = list[int](), num_devices
    while rest > 1:
        factors.append(next(k for k in range(2, rest + 1) if rest % k == 0))
        rest //= factors[-1]
    return {f"{_AXIS}{index}": factor for index, factor in enumerate(factors or [1])}


def fsdp_spec(shape: Sequence[int], axes: Mapping[str, int]) -> PartitionSpec:
    """Return how an array of a training state is sharded.

    Each mesh axis shards the array axis that is largest so far among those that it divides.
    Without one, and for arrays of fewer than `FSDP_MIN_SIZE` values, it replicates the array.

    Args:
        shape: Shape of the array.
        axes: Name of each mesh axis -> its number of devices.
    """
    sides, names = list(shape), [list[str]() for _ in shape]
    for name, size in axes.items() if math.prod(shape) >= FSDP_MIN_SIZE else ():
        divisible = [i for i, side in enumerate(sides) if side % size == 0]
        if divisible:
            largest = max(divisible, key=sides.__getitem__)
            sides[largest] //= size
            names[largest].append(name)
    return PartitionSpec(*(tuple(group) or None for group in names))


# --- signals ---


class StopRequested(KeyboardInterrupt):
    """Raised when a signal ends a training before its first step: there is nothing to save.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} before the first step")
        self.signum = signum


class PreemptionHandler:
    """Context manager that records the first of `STOP_SIGNALS`; a second one ends the process.

    Before the first step, the first signal raises `StopRequested`. The second is noticed even
    while the main thread compiles; files are written atomically, so that it damages nothing.
    Signals that the parent process ignores (`nohup`) stay ignored.

    With several processes JAX handles SIGTERM instead, whichever process receives it, so that all
    processes stop after the same step.

    Attributes:
        signum: The first signal, None before it.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._has_steps, self._previous_handlers = False, dict[int, Any]()
        self._sync_count = 0

    def __enter__(self) -> PreemptionHandler:
        if jax.process_count() == 1:
            self._previous_handlers = {
                signum: signal.signal(signum, self._handle_signal)
                for signum in STOP_SIGNALS
                if signal.getsignal(signum) != signal.SIG_IGN
            }
            # Python's own handlers wait until the main thread returns from compilation.
            read_end, self._write_end = os.pipe()
            os.set_blocking(self._write_end, False)
            self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read_end,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous_handlers:
            for signum, handler in self._previous_handlers.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._write_end)

    def should_stop(self) -> bool:
        """Return whether the training should stop; call it once after every step."""
        self._has_steps = True
        if jax.process_count() == 1:
            return self.signum is not None
        # JAX stops all processes at the largest count that one of them has reached, plus one.
        self._sync_count += 1
        return multihost_utils.reached_preemption_sync_point(self._sync_count)

    def _handle_signal(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            if not self._has_steps:
                raise StopRequested(signum)

    def _watch(self, read_end: int) -> None:
        """End the process at the second signal; the kernel writes the number of each to a pipe."""
        first_time = None
        while data := os.read(read_end, 1):
            if data[0] not in self._previous_handlers:
                continue
            if first_time is None:
                first_time = time.monotonic()
            elif time.monotonic() - first_time > _SAME_SIGNAL_S:
                os.write(2, b"esrjax: second signal: ended at once, without saving\n")
                os._exit(128 + data[0])
        os.close(read_end)
