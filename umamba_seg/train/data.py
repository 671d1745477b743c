"""Training data as a function of (seed, stream, number, item), made in this process or by workers.

nnU-Net's loader crops and augments; what it draws is settled here, sample by sample. A batch therefore has the same
bits whoever makes it and whatever was made before: a training goes on after a kill as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import pickle
import random
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import torch
import torch.multiprocessing
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from umamba_seg.errors import UserError
from umamba_seg.settings import BATCHES_AHEAD
from umamba_seg.text import gib, shorten, times
from umamba_seg.train.cascade import NEXT_STAGE

# What blosc2 and pickle raise on damaged files: 6000 damaged copies of a case raised these, and none crashed.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    MemoryError,  # a wrong size is asked for
    ModuleNotFoundError,
    pickle.UnpicklingError,
)


# ------------------------------------------------------------------------------------------------------------ the cases


class _Stored:
    """An array in a file of a case, read where it is cropped."""

    def __init__(self, array, file: Path):
        self._array, self._file, self.shape = array, file, array.shape

    def __getitem__(self, place) -> np.ndarray:
        with _reading(self._file):
            return self._array[place]


class Cases:
    """A data set of nnU-Net whose damaged files are named.

    Args:
        dataset: Any of nnU-Net's; its cases have three files, and in the second stage of a cascade a fourth.
    """

    def __init__(self, dataset: nnUNetBaseDataset):
        self._dataset = dataset
        self.identifiers: list[str] = dataset.identifiers

    def load_case(self, identifier: str) -> tuple:
        """As nnU-Net's: image, segmentation, that of the previous stage or None, properties.

        Raises:
            UserError: A file is missing, damaged, or lacks what nnU-Net wrote; or the previous stage's segmentation is
                on another grid than the image.
        """
        folder, of_previous = Path(self._dataset.source_folder), self._dataset.folder_with_segs_from_previous_stage
        image, labels, facts = (folder / f"{identifier}{end}" for end in (".b2nd", "_seg.b2nd", ".pkl"))
        earlier = None if of_previous is None else Path(of_previous, f"{identifier}.b2nd")
        with _reading(*filter(None, (earlier, image, labels, facts))):
            data, seg, previous, properties = self._dataset.load_case(identifier)  # type: ignore[misc]  (abstract)
            if "class_locations" not in properties:
                raise ValueError("it lacks class_locations")
        if earlier is None:
            return _Stored(data, image), _Stored(seg, labels), None, properties
        if previous.shape != data.shape[1:]:
            what = f"has {times(previous.shape)} voxels, and the preprocessed image {times(data.shape[1:])}"
            raise UserError(earlier, what, _remedy(earlier))
        return _Stored(data, image), _Stored(seg, labels), _Stored(previous, earlier), properties


@contextlib.contextmanager
def _reading(*files: Path) -> Iterator[None]:
    """Name the file that an error is about: the one that its message names, the last one otherwise."""
    try:
        yield
    except _DAMAGE as error:
        named = next((file for file in files if str(file) in str(error)), files[-1])
        what = f"this preprocessed file cannot be read ({type(error).__name__}: {error})"
        raise UserError(named, what, _remedy(named)) from error


def _remedy(file: Path) -> str:
    if file.parent.parent.name == NEXT_STAGE:
        return "repeat the final validation of the previous stage's fold (train with --val), then go on with --c"
    return f"delete {file.parent}.stamp, run plan_and_preprocess again, then go on with --c"


# ---------------------------------------------------------------------------------------------------------- the samples


class Samples(nnUNetDataLoader):
    """The samples of a training's batches, each a function of (seed, stream, number, item).

    Cases are drawn uniformly with replacement, as nnU-Net does; the last items of a global batch must show foreground.

    Args:
        dataset: A data set of nnU-Net.
        label_manager: The plans' labels.
        patch_size: What is cropped; larger than ``final_patch_size`` when the transforms rotate.
        final_patch_size: What the network sees.
        transforms: Of ``nnUNetTrainer``; they are settled (see :func:`settle_transforms`).
        batch_size: Of the global batch, over all processes of a distributed training.
        items: The positions in the global batch that this process makes.
        oversample_foreground: Share of the global batch that must show foreground.
        seed: Of the training.
        stream: Tells apart what is drawn with the same seed: 0 for training, 1 for validation.
    """

    def __init__(
        self,
        dataset: nnUNetBaseDataset,
        label_manager: LabelManager,
        *,
        patch_size: Sequence[int],
        final_patch_size: Sequence[int],
        transforms: BasicTransform,
        batch_size: int,
        items: range,
        oversample_foreground: float,
        seed: int,
        stream: int,
    ):
        super().__init__(
            Cases(dataset),  # type: ignore[arg-type]
            len(items),
            patch_size,  # type: ignore[arg-type]
            final_patch_size,  # type: ignore[arg-type]
            label_manager,
            transforms=transforms,
        )
        self.items = items
        self._plain_items = round(batch_size * (1 - oversample_foreground))  # nnU-Net's rounding
        self._origin = (seed, stream)
        self._number = 0
        self._shuffled = settle_transforms(transforms)

    def cases(self, number: int) -> list[str]:
        """The cases of a batch, without loading anything."""
        draws = (int(self._words(number, item)[0]) for item in self.items)
        return [self.indices[draw % len(self.indices)] for draw in draws]

    def batch(self, number: int) -> dict:
        """The samples of this process in batch ``number``.

        Returns:
            ``data`` (items, channels, *patch), ``target`` (items, 1, *patch) or under deep supervision a list of them,
            and ``keys``, the cases.

        Raises:
            UserError: A case cannot be read.
        """
        self._number = number
        with _random_states_kept():
            return self.generate_train_batch()

    def get_indices(self) -> list[str]:
        """nnU-Net asks for the cases of a batch here."""
        return self.cases(self._number)

    def _oversample_last_XX_percent(self, sample_idx: int) -> bool:
        """nnU-Net asks here as it begins a sample, before it draws anything for it."""
        item = self.items[sample_idx]
        _, *seeds = map(int, self._words(self._number, item))
        random.seed(seeds[0])
        np.random.seed([seeds[1] >> 32, seeds[1] & 0xFFFFFFFF])
        torch.default_generator.manual_seed(seeds[2])
        for channels in self._shuffled:
            channels.sort()
        return item >= self._plain_items

    def _words(self, number: int, item: int) -> np.ndarray:
        """Four random words of 64 bits: which case, and seeds for random, numpy and torch."""
        return np.random.SeedSequence((*self._origin, number, item)).generate_state(4, np.uint64)


def settle_transforms(transforms: BasicTransform) -> list[list[int]]:
    """Make what transforms of batchgeneratorsv2 do a function of the random states alone.

    Two of them remember: the blur times two ways of convolving and takes the faster (whose bits differ), and those of
    cascades shuffle their list of channels in place.

    Returns:
        The lists that must be sorted before each sample.
    """
    shuffled = []
    for transform in _nested(transforms):
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False
        channels = getattr(transform, "channel_idx", None)
        if isinstance(channels, list):
            shuffled.append(channels)
    return shuffled


def _nested(transform: BasicTransform) -> Iterator[BasicTransform]:
    """A transform and those that it applies."""
    yield transform
    for value in vars(transform).values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, BasicTransform):
                yield from _nested(inner)


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Put the random states of this process back: drawing a batch must disturb nothing else."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


# ----------------------------------------------------------------------------------------------------------- the loader


class Loader:
    """Batches of ``samples`` in the order of their numbers, without end.

    Each worker has a pipe of its own, so that one that dies blocks no other, and its end is seen at once. They end
    when this process does, however it does.

    Args:
        samples: What makes them.
        start: Number of the first.
        workers: Processes that make them ahead; 0 makes each in this process when it is asked for.
        pin: Have batches of workers in page-locked memory, from where a GPU copies faster.

    Attributes:
        number: Of the next batch.
    """

    def __init__(self, samples: Samples, start: int = 0, workers: int = 0, *, pin: bool = False):
        self.samples, self.number, self._pin = samples, start, pin
        self._workers: list[_Worker] = []
        self._thread = ThreadPoolExecutor(1, "loader")  # receives (and pins) the next batch during a training step
        # At exit before multiprocessing joins its processes: they do not listen to the SIGTERM that it sends.
        self._end = multiprocessing.util.Finalize(self, _end, (self._workers, self._thread), exitpriority=10)
        for _ in range(workers):
            self._workers.append(_Worker(samples))
        for number in range(start, start + workers * BATCHES_AHEAD):
            self._workers[number % workers].ask(number)
        self._receive_next()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict:
        """The next batch, as :meth:`Samples.batch`.

        Raises:
            UserError: A case cannot be read, or a worker was killed.
        """
        if self._workers:
            batch = self._next.result()
            self.number += 1
            self._receive_next()
        else:
            batch = self.samples.batch(self.number)
            self.number += 1
        return batch

    def state(self) -> str:
        """What the next batch is and how whoever makes it is doing, for a message about waiting too long."""
        batch = f"batch {self.number} with cases {shorten(self.samples.cases(self.number))}"
        if not self._workers:
            return f"{batch}, made by this process"
        return f"{batch}, made by a worker that {self._workers[self.number % len(self._workers)].state()}"

    def close(self) -> None:
        """End the workers, at once."""
        self._end()

    def _receive_next(self) -> None:
        if self._workers:
            self._next = self._thread.submit(_receive, self._workers, self.number, self._pin)


class _Worker:
    """A process that makes batches, asked for by number."""

    def __init__(self, samples: Samples):
        context = _context()
        self._samples = samples
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(samples, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._asked: deque[int] = deque()

    def ask(self, number: int) -> None:
        """Have it make a batch, after those that it was asked for already."""
        self._asked.append(number)
        with self._watched():
            self._connection.send(number)

    def take(self) -> dict | UserError:
        """The first of the batches that it was asked for, or why there is none."""
        with self._watched():
            batch = self._connection.recv()
        self._asked.popleft()
        return batch

    def state(self) -> str:
        """How its process is doing: ``disk-sleep`` waits for a disk."""
        pid = self._process.pid
        try:
            return f"is in state {psutil.Process(pid).status()} (process {pid})"
        except psutil.NoSuchProcess:
            return f"has ended (process {pid})"

    def kill(self) -> None:
        """It holds nothing that must be put away."""
        self._process.kill()

    def release(self) -> None:
        """Give back what a killed worker took of this process."""
        self._connection.close()
        self._process.join()
        self._process.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):  # the pipe is broken: it has ended, or is about to
            self._process.join(timeout=5)
            if self._process.exitcode is None:
                raise
            self._tell_of_death(self._process.exitcode)

    def _tell_of_death(self, code: int) -> NoReturn:
        number = self._asked[0]
        work = f"batch {number} (cases {shorten(self._samples.cases(number))})"
        if code >= 0:
            raise RuntimeError(f"a loader worker failed at {work}, exit code {code}; its own message stands above")
        killer = signal.Signals(-code).name
        cause = {
            "SIGKILL": "most likely the system ran out of memory",
            "SIGBUS": "most likely the shared memory in /dev/shm is full, or a preprocessed file was cut short",
        }.get(killer, "a library crashed, or somebody ended it")
        free = gib(psutil.virtual_memory().available)
        raise UserError(
            f"loader worker {self._process.pid}",
            f"it was killed by {killer} at {work}: {cause} ({free} are free now)",
            "go on with --c and fewer workers (--workers N; 0 makes the batches in the training's own process)",
        )


def _context() -> ForkServerContext | SpawnContext:
    """Processes forked from one that has loaded torch and nnU-Net: a fork of this one could hang or break its CUDA."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return torch.multiprocessing.get_context("spawn")
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _work(samples: Samples, connection: Connection) -> None:
    """What a worker does until the training closes its end of the pipe."""
    for name in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and schedulers send them to all: the training decides
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    while (number := _next_number(connection)) is not None:
        try:
            batch = samples.batch(number)
        except UserError as error:
            batch = error
        _send(connection, batch)


def _next_number(connection: Connection) -> int | None:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return None


def _send(connection: Connection, batch: dict | UserError) -> None:
    """Hand a batch over, its tensors in shared memory."""
    try:
        connection.send(batch)
    except (BrokenPipeError, ConnectionResetError):
        return  # the training has ended; asking for the next number tells so
    except RuntimeError as error:  # torch's, of one kind only
        remedy = "make it larger (for docker: --shm-size=8g) or train with --workers 0, then go on with --c"
        connection.send(UserError("/dev/shm", f"there is no room for a worker's batch ({error})", remedy))


def _receive(workers: list[_Worker], number: int, pin: bool) -> dict:
    """Batch ``number`` of the worker whose turn it is, which is asked for another."""
    worker = workers[number % len(workers)]
    batch = worker.take()
    if isinstance(batch, UserError):
        raise batch
    worker.ask(number + len(workers) * BATCHES_AHEAD)
    return _pinned(batch) if pin else batch


def _pinned(batch: dict) -> dict:
    target = batch["target"]
    pinned = [part.pin_memory() for part in target] if isinstance(target, list) else target.pin_memory()
    return batch | {"data": batch["data"].pin_memory(), "target": pinned}


def _end(workers: list[_Worker], thread: ThreadPoolExecutor) -> None:
    for worker in workers:
        worker.kill()
    thread.shutdown(cancel_futures=True)  # before the pipes are closed, which it may be waiting at
    for worker in workers:
        worker.release()
