"""Progress of a sampler, reported from inside its compiled loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from edm_jax.names import brief
from edm_jax.typing import PyTree

ReportFn = Callable[[int, int], None]


def is_watched(stream: TextIO | None = None) -> bool:
    """Whether somebody sees a line that is rewritten: on a terminal, or in a notebook.

    Args:
      stream: where it is written; None is standard error.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        return True
    # The streams of a notebook's kernel are no terminals, yet they rewrite lines as one does.
    return type(stream).__module__.startswith(("ipykernel.", "google.colab."))


class ProgressBar:
    """Shows steps done, rate and time left on the terminal or in the notebook of the first process.

    Silent on other processes, and where nobody watches (`is_watched`).  Reports
    may come late, repeated or out of order (batched or sharded programs); only the
    furthest counts.
    """

    def __init__(self, description: str = "sampling") -> None:
        self._description = description
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps are finished; 0 starts a new bar."""
        if jax.process_index() != 0:
            return
        if done == 0:
            self._start(total)
        elif self._bar is not None and done > self._bar.n:
            self._bar.update(done - self._bar.n)
            if done >= total:
                self._close()

    def _start(self, total: int) -> None:
        if self._bar is not None and self._bar.n == 0:
            return  # a batched program starts once for every lane
        import tqdm

        self._close()
        if is_watched():
            self._bar = tqdm.tqdm(total=total, desc=self._description)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def reporter(progress: bool | ReportFn) -> ReportFn | None:
    """What a sampler's ``progress`` argument asks for.

    Args:
      progress: False for none, True for a ProgressBar, or a function
        ``(done, total)`` that runs on the host.

    Returns:
      The function to call on the host, or None.
    """
    if progress is True:
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "progress=True needs tqdm (pip install tqdm); or pass a function (done, total)"
            ) from error
        return ProgressBar()
    if progress is False or progress is None:
        return None
    if not callable(progress):
        raise ValueError(
            f"progress must be a bool or a function (done, total), got {brief(progress)}"
        )
    return progress


def report(report_fn: ReportFn | None, done: Any, total: int, *, after: PyTree = ()) -> None:
    """Emit a host call from traced code; nothing at all if report_fn is None.

    Args:
      report_fn: what to call with (done, total).
      done: steps finished, may be traced.
      total: number of steps.
      after: arrays that must be there first.
    """
    if report_fn is None:
        return

    def call(done: Any, *_: Any) -> None:
        report_fn(int(done), total)

    # Unordered: ordered effects exclude vmap and programs on several devices.  What the
    # call follows must be an argument of it, or the compiler may run it at any time.
    first = [jnp.ravel(leaf)[:1] for leaf in jax.tree.leaves(after)[:1]]
    jax.debug.callback(call, done, *first)


def scan(
    step: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    inputs: tuple[PyTree, ...],
    progress: bool | ReportFn = False,
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` of ``state, out = step(state, *inputs_i)`` that shows its progress.

    Args:
      step: one iteration.
      state: pytree of arrays of fixed shapes.
      inputs: arrays with leading axis N.
      progress: as `reporter` takes it; off, it adds nothing to the compiled program.

    Returns:
      The final state, and ``out`` of every iteration stacked.
    """
    report_fn, total = reporter(progress), jax.tree.leaves(inputs)[0].shape[0]
    report(report_fn, 0, total)

    def body(state: PyTree, xs: tuple) -> tuple[PyTree, PyTree]:
        done, inputs_i = xs
        state, out = step(state, *inputs_i)
        report(report_fn, done, total, after=state)
        return state, out

    return jax.lax.scan(body, state, (jnp.arange(1, total + 1), inputs))
