r"""Train, sample and evaluate EDM diffusion models.

Train (and evaluate at the end), or resume; the same command does both:

    python experiments/main.py --config=configs/digits.py --workdir=runs/digits

Any option of the configuration can be set: --config.train.lr=1e-3 (configs/base.py lists
and explains them).  Images from a trained run, with no configuration:

    python experiments/main.py --mode=sample --workdir=runs/digits --seeds=0-63 --labels=3

Everything else is a mode, and --mode=NAME --help tells what it does and takes:

MODES

Exit codes: 0 done, 1 the work failed, 2 the command or its input was wrong, 75 stopped on
request (SIGTERM) after saving, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import logging as standard_logging
import os
import pathlib
import signal
import sys
import time
import traceback
import warnings
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Run as a script, Python sees only this folder.  Configs and experiments are beside it, and
# what a user names as module:function may lie in the working directory.
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry not in ("", str(ROOT))), ""]

from experiments import commands, cores, flags  # noqa: E402
from experiments.config.flag import UsageError  # noqa: E402

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: not an error; the same command goes on
# True of every mode: training keeps checkpoints, a preflight nothing.
AGAIN = "the same command goes on from what it kept, or starts anew if that is nothing"
# Time for processes that were told of a failure to say so.
GRACE_SECONDS = 5
MODE = flags.choice("mode", commands.names(), "What to do.", default=commands.DEFAULT)
HELP = {"help", "h", "helpshort", "helpfull"}


def main(argv: list[str]) -> int:
    """Carry out one command; known failures end with one line.

    Args:
      argv: the program and the words after it.

    Returns:
      The exit code.
    """
    try:
        words = flags.expand(argv)[1:]
        mode, words = _mode_of(words)
        if any(flags.is_flag(word, HELP) for word in words):
            print(_help(mode))
            return 0
        command = commands.load(mode or commands.DEFAULT)
        values = flags.parse(words, command.FLAGS, _owners)
        return command.run(values) or 0
    except KeyboardInterrupt:
        return _fail(f"interrupted; {AGAIN}", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            traceback.print_exc()
            return 1
        return _fail(str(error), code)


def _mode_of(words: list[str]) -> tuple[str | None, list[str]]:
    """The mode of a command line, None if it names none, and the other words."""
    mode, rest, words = None, [], list(words)
    while words:
        word = words.pop(0)
        if not flags.is_flag(word, {"mode"}):
            rest.append(word)
            continue
        value = word.partition("=")[2] or (words.pop(0) if words and "=" not in word else "")
        try:
            mode = MODE.convert(value)
        except ValueError as error:
            raise UsageError(f"--mode={value}: {error}") from None
    return mode, rest


def _owners(name: str) -> list[str]:
    """The modes that have a flag of this name."""
    return [
        mode
        for mode in commands.names()
        if any(flag.name == name and not flag.refused for flag in commands.load(mode).FLAGS)
    ]


def _help(mode: str | None) -> str:
    """What a mode does and takes; without one, what modes there are."""
    if mode is None:
        lines = [(name, commands.load(name).__doc__.splitlines()[0]) for name in commands.names()]
        modes = "\n".join(f"    {f'--mode={name}':<20}{told}" for name, told in lines)
        return __doc__.replace("MODES", modes).strip()
    command = commands.load(mode)
    more = getattr(command, "more_help", lambda: "")()
    parts = (command.__doc__.strip(), f"Flags:\n{flags.describe(command.FLAGS)}", more)
    return "\n\n".join(part for part in parts if part)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _exit_code(error: Exception) -> int | None:
    """Of a failure that its message explains; None for one that needs its traceback."""
    if isinstance(error, ValueError | FileNotFoundError):
        return 2
    if isinstance(error, OSError):
        return 1
    ours = type(error).__module__.startswith(("experiments.", "edm_jax."))
    if isinstance(error, RuntimeError) and ours:
        return {"Preempted": EXIT_PREEMPTED, "WorkdirError": 2}.get(type(error).__name__, 1)
    return None


# ------------------------------------------------------- what concerns the whole process


def _leave(code: int) -> None:
    """End; of several processes, not by the barrier that those still at work would never reach."""
    # While the program ends, Python would let a request kill it, and the code would be lost.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    jax = sys.modules.get("jax")
    failed = code not in (0, EXIT_PREEMPTED)
    if failed and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        time.sleep(GRACE_SECONDS)
        os._exit(code)
    sys.exit(code)


def _asked_to_stop(*unused: Any) -> None:
    _leave(_fail(f"asked to stop; {AGAIN}", EXIT_PREEMPTED))


def _set_up() -> None:
    """Say in one line what is for the user, and nothing of what is not."""
    from absl import flags as absl_flags
    from absl import logging

    # What fails ends in one line of ours, not in the reports of every thread on the way.
    absl_flags.FLAGS.mark_as_parsed()  # libraries read flags of their own
    logging.use_absl_handler()
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cores.as_devices()
    cores.keep_memory()
    # What we warn of is for the user: one line, without the place in the code.
    warnings.showwarning = lambda message, *where: print(f"warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Until training takes over, and after it: nothing is at stake, but a scheduler wants its code.
    signal.signal(signal.SIGTERM, _asked_to_stop)


if __name__ == "__main__":
    _set_up()
    _leave(main(sys.argv))
