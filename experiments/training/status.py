"""One compact line that tells where a training run is."""

from __future__ import annotations

import sys
import time

import jax

from edm_jax.progress import is_watched
from experiments.words import format_duration


def memory_gib() -> float:
    """Peak memory: of the fullest device where the backend tells, else of this process."""
    peaks = [
        stats["peak_bytes_in_use"]
        for device in jax.local_devices()
        if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats
    ]
    if peaks:
        return max(peaks) / 2**30
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class StatusLine:
    """Prints progress; rewrites one line on a terminal, prints lines elsewhere."""

    def __init__(self, total_steps: int, batch_size: int, *, enabled: bool = True):
        """A line for a run of ``total_steps``; silent unless ``enabled``."""
        self._total, self._batch = total_steps, batch_size
        self._enabled = enabled
        self._interactive = is_watched(sys.stdout)
        self._open = False
        self.start(0)

    def start(self, step: int) -> None:
        """Rates count from here."""
        self._mark_time, self._mark_step = time.perf_counter(), step

    def rate(self, step: int) -> float | None:
        """Images per second since the last call, or None if no step was taken since."""
        if step <= self._mark_step:
            return None
        now = time.perf_counter()
        steps, seconds = step - self._mark_step, now - self._mark_time
        self._mark_time, self._mark_step = now, step
        return steps * self._batch / max(seconds, 1e-9)

    def pause(self) -> float:
        """Start of work that is not training; give the result to `resume`."""
        return time.perf_counter()

    def resume(self, paused_at: float) -> None:
        """Leave the time since ``paused_at`` out of the rate."""
        self._mark_time += time.perf_counter() - paused_at

    def show(
        self,
        step: int,
        *,
        rate: float | None,
        loss: float,
        lr: float,
        utilisation: float | None = None,
    ) -> None:
        """One line: kimg, share done, rate, loss, lr, memory, time left.

        ``utilisation`` is the share of the device's peak arithmetic (MFU), if it is known.
        """
        if not self._enabled:
            return
        pace, left = "", ""
        if rate is not None:
            pace = f"{rate:8.1f} img/s  "
            left = f"left {format_duration((self._total - step) * self._batch / max(rate, 1e-9))}"
        mfu = f"mfu {100 * utilisation:.1f} %  " if utilisation is not None else ""
        line = (
            f"kimg {step * self._batch / 1000:<9.1f} {100 * step / self._total:5.1f} %  "
            f"{pace}loss {loss:<8.4f} lr {lr:<8.2e} "
            f"mem {memory_gib():.2f} GiB  {mfu}{left}"
        )
        if self._interactive:
            print(f"\r\x1b[K{line}", end="", flush=True)
            self._open = True
        else:
            print(line, flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if not self._enabled:
            return
        if self._open:
            print()
            self._open = False
        print(text, flush=True)
