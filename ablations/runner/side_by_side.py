"""Several runs at a time, a process each: on a CPU with its share of the threads, on GPUs on the next device each.

The processes die with the command, of `kill -9` too, and are killed where it is interrupted: any of them may end at any
moment, as a run goes on from its last finished epoch and its lock is freed by the system.
"""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self

import torch
from tqdm import tqdm

from ablations.runner import scheduler
from ablations.runner.machine import Machine
from ablations.runner.preflight import KNOWN, recorded
from ablations.runner.runs import Run, with_needs
from ablations.runner.scheduler import Batch, Outcome, Scheduler, left_to, save, say, tidy
from ablations.spec import SpecError

SPAWN = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
TOLD_EVERY = 0.5


@dataclass(frozen=True)
class Place:
    """Where one of the processes works: its number, and where it counts the epochs that it has trained."""

    number: int
    epochs: Any  # a shared array, a cell a process: no lock that a killed one could keep

    def count(self, epochs: float) -> None:
        """So many epochs more."""
        self.epochs[self.number] += int(epochs)


PLACE: list[Place] = []
"""In such a process: its own."""


class Told(tqdm):  # type: ignore[misc]  # tqdm ships no types
    """A bar that shows nothing here and counts where the command sees it."""

    def __init__(self, place: Place) -> None:
        super().__init__(disable=True)
        self.place = place

    def update(self, n: float | None = 1) -> None:
        """So many epochs more."""
        self.n += n or 0
        self.place.count(n or 0)


def begin(places: Any, epochs: Any, threads: int, devices: Sequence[str]) -> None:
    """What each process does first: find its place, and see to it that it does not outlive the command."""
    with places.get_lock():
        place, places.value = Place(places.value, epochs), places.value + 1
    PLACE.append(place)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the command's, which ends this process
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    threading.Thread(target=_die_with_the_command, daemon=True).start()
    torch.set_num_threads(threads)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[place.number % len(devices)]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def _die_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command
    command.join()
    os._exit(1)


def train_group(batch: Batch, machine: Machine) -> Outcome:
    """Train the runs of `batch` in this process: what is left to other commands, and what went wrong, in sentences."""
    bar = Told(PLACE[0] if PLACE else Place(0, [0]))  # nobody counts a cluster's epochs
    worker = Scheduler(machine, bar, lambda run, record: save(record, run, batch.folder, batch.render), batch.folder)
    try:
        return [left_to(run, holder) for run, holder in worker.work(batch.runs)], None
    except KNOWN as error:
        return [], str(error)
    except OSError as error:
        return [], f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:
        traceback.print_exc()
        return [], f"{type(error).__name__}: {error}"


def groups(batch: Batch) -> list[Batch]:
    """Parts of `batch` that processes can work on side by side: no two of them need the same net."""
    found: list[tuple[set[str], list[Run]]] = []
    for run in batch.runs:
        folders, runs = {str(each.folder) for each in with_needs(run)}, [run]
        for other in [each for each in found if each[0] & folders]:
            found.remove(other)
            folders, runs = folders | other[0], other[1] + runs
        found.append((folders, runs))
    return [batch.of(runs) for _, runs in found]


class Processes:
    """`number` processes, started as they are needed, which share the threads or the GPUs of `machine`.

    A context manager; at its end the processes are killed.
    """

    def __init__(self, machine: Machine, number: int) -> None:
        self.number, self.others = number, set(multiprocessing.active_children())
        self.epochs = SPAWN.Array("q", number, lock=False)
        self.threads = max(1, torch.get_num_threads() // number)
        devices = [] if machine.accelerator == "cpu" else visible_devices()
        start = (SPAWN.Value("i", 0), self.epochs, self.threads, devices)
        self.pool = ProcessPoolExecutor(number, SPAWN, begin, start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in set(multiprocessing.active_children()) - self.others:
            process.kill()
        self.pool.shutdown(cancel_futures=True)

    @property
    def how(self) -> str:
        """How runs are trained, for people."""
        return f"{self.number} at a time"

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """What comes of `work`, which one of the processes does."""
        with _environment(self.threads):
            return self.pool.submit(work, *arguments)

    def result(self, future: Future[Any]) -> Any:
        """What `submit` gave has come to; raises SpecError if a process was killed."""
        try:
            return future.result()
        except BrokenProcessPool:
            raise SpecError(
                f"one of the {self.number} processes was killed, perhaps for want of memory; what is finished is "
                "kept, and the same command goes on from there, with fewer --jobs if need be."
            ) from None

    def work_on(
        self, parts: Sequence[Batch], work: Callable[[Batch], Outcome], bar: tqdm
    ) -> Generator[tuple[Batch, Outcome], None, None]:
        """Each part and what came of it, as they end; `bar` moves with the epochs of all."""
        jobs, before = {self.submit(work, part): part for part in parts}, sum(self.epochs)
        underway = set(jobs)
        while underway:
            done, underway = wait(underway, TOLD_EVERY, FIRST_COMPLETED)
            if more := sum(self.epochs) - before - bar.n:
                bar.total = max(bar.total, bar.n + more)  # nets that are trained for others alone
                bar.update(more)
            for future in done:
                yield jobs[future], self.result(future)


class Workers(Protocol):
    """Who works on parts of a command's runs, elsewhere than in its process."""

    @property
    def how(self) -> str:
        """How they do, for people."""

    def work_on(
        self, parts: Sequence[Batch], work: Callable[[Batch], Outcome], bar: tqdm
    ) -> Generator[tuple[Batch, Outcome], None, None]:
        """Each part and what came of it, as they end."""


class Crew:
    """Trains runs on `machine`, `jobs` at a time: one in this process, several in processes that it keeps for the next.

    A context manager; at its end the processes end. With `workers` they train, and not this machine. `wrong` is what
    went wrong with them, a sentence a run; what goes wrong where this process trains is raised.
    """

    def __init__(self, machine: Machine, jobs: int = 1, workers: Workers | None = None) -> None:
        self.machine, self.jobs, self.workers = machine, jobs, workers
        self.wrong: dict[str, str] = {}
        self._open = ExitStack()
        self._processes: Processes | None = None

    @property
    def alone(self) -> bool:
        """Whether this process trains, one run after another."""
        return self.jobs == 1 and self.workers is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes = None
        self._open.close()

    @contextmanager
    def _ended_if_it_breaks(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.__exit__()
            raise

    def execute(self, batches: Sequence[Batch]) -> None:
        """Train what has no record; raises SpecError if a process was killed."""
        if self.alone:
            for batch in batches:
                scheduler.execute(batch.runs, batch.folder, self.machine, batch.render)
            return
        workers = self.workers or self._started()
        runs = [run for batch in batches for run in batch.runs]
        missing = [b.of([run for run in b.runs if not recorded(run, b.folder)]) for b in batches]
        number = sum(len(batch.runs) for batch in missing)
        say(f"{len(runs)} runs, {len(runs) - number} of them recorded already, {workers.how}")
        if number:
            self._together(workers, [part for batch in missing for part in groups(batch)])
        for batch in batches:
            tidy(batch.runs, batch.folder)

    def _started(self) -> Processes:
        if self._processes is None:
            self._processes = self._open.enter_context(Processes(self.machine, self.jobs))
        return self._processes

    def _together(self, workers: Workers, parts: Sequence[Batch]) -> None:
        total = sum(run.recipe.epochs for part in parts for run in part.runs)
        work = partial(train_group, machine=self.machine)
        with (
            self._ended_if_it_breaks(),
            tqdm(total=total, unit="epoch", dynamic_ncols=True, desc=workers.how) as bar,
            closing(workers.work_on(parts, work, bar)) as ended,
        ):
            for part, (left, why) in ended:
                for sentence in left:
                    bar.write(sentence)
                if why:
                    first = part.runs[0]
                    self.wrong[f"{first.ablation.name} {first.row.key}, seed {first.seed}"] = why


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What processes that start in the block inherit: libraries read it when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
