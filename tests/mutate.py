"""Makes wrong lines in the core, one at a time, and shows which of them the tests notice.

    python -m tests.mutate                                   every module, 20 mutants each
    python -m tests.mutate noise samplers/stochastic --count 0     all mutants of two modules
    python -m tests.mutate ema --only 37:Mod                 those of one line and kind

A mutant is one change of one expression: another comparison, + for -, an integer off by one, a
clamp or a `fold_in` left out, two arguments exchanged.  The tests of its module (those marked
slow aside) run on it in a process of its own, forked from one that has loaded JAX; the first
failure ends them.  The sample is a function of the seed alone.  Docstrings, annotations, messages
of errors and default keywords of dataclasses' fields are left as they are.

Exit code 0 if at least ``--target`` of the mutants were noticed, those of ACCEPTED aside.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from tests.support import compiler

ROOT = pathlib.Path(__file__).parents[1]

# Module -> the test files that answer for it, the quickest first.  Of a file with words behind its
# name only the tests that have one of them in theirs.
MODULES: dict[str, tuple[str, ...]] = {
    "ema": ("test_ema.py",),
    "seeds": ("test_seeds.py",),
    "noise": ("test_noise.py", "test_losses.py"),
    "losses": ("test_losses.py",),
    "schedules": ("test_schedules.py", "test_grids.py"),
    "grids": ("test_grids.py", "samplers/test_general.py"),
    "precond": ("test_precond.py",),
    "adapters": ("test_adapters.py",),
    "exact/distributions": ("exact/test_distributions.py",),
    "exact/bed": ("exact/test_promises.py",),
    "exact/contract": ("exact/test_contract.py", "exact/test_promises.py"),
    "exact/promises": ("exact/test_promises.py",),
    "exact/subjects": ("exact/test_promises.py",),
    "exact/likelihood_promises": ("exact/test_likelihood_promises.py",),
    "exact/reflected_promises": ("exact/test_reflected_promises.py",),
    "samplers/stochastic": ("samplers/test_stochastic.py",),
    "samplers/heun": ("samplers/test_heun.py", "samplers/test_stochastic.py"),
    "samplers/general": (
        "samplers/test_general.py", "samplers/test_registry_settings.py general",
        "samplers/test_loop.py",
    ),
    "samplers/baselines": (
        "samplers/test_baselines.py", "samplers/test_methods.py vp_ ve_ ddim",
        "samplers/test_registry_settings.py ddim sample_vp sample_ve",
        "samplers/test_registry.py [vp_ [ve_r [ve_o [ddim]",
    ),
    "samplers/dpmpp_single": ("samplers/test_dpmpp_single.py",),
    "samplers/rows": (
        "samplers/test_baselines.py", "samplers/test_stochastic.py",
        "samplers/test_sa_solver.py", "samplers/test_dpmpp_single.py", "samplers/test_methods.py",
    ),
    "samplers/sa_solver": (
        "samplers/test_sa_solver.py", "samplers/test_named.py sa_",
        "samplers/test_registry_settings.py sa_",
    ),
    "samplers/reflected": ("reflected/test_sampling.py",),
    "samplers/loop": ("samplers/test_stochastic.py", "samplers/test_loop.py"),
    "samplers/path": ("samplers/test_named.py tree", "samplers/test_path.py"),
    "samplers/restart": (
        "samplers/test_named.py restart published segments",
        "samplers/test_registry_settings.py restart",
    ),
    "samplers/predictor_corrector": (
        "samplers/test_methods.py corrector", "samplers/test_loop.py predictor",
        "samplers/test_registry_settings.py predictor_corrector",
        "samplers/test_registry.py predictor_corrector",
    ),
    "samplers/ddpm": (
        "samplers/test_methods.py ddpm", "samplers/test_ddpm_guided.py",
        "samplers/test_registry_settings.py ddpm", "samplers/test_path.py ddpm",
        "samplers/test_registry.py [ddpm]",
    ),
    "samplers/er_sde": (
        "samplers/test_named.py er_sde", "samplers/test_er_sde.py",
        "samplers/test_registry_settings.py er_sde", "samplers/test_path.py er_sde",
        "samplers/test_registry.py er_sde",
    ),
    "samplers/seeds_2_3": (
        "samplers/test_named.py seeds_", "samplers/test_seeds_2_3.py",
        "samplers/test_registry_settings.py seeds_", "samplers/test_path.py seeds_",
        "samplers/test_registry.py seeds_",
    ),
    "samplers/deis": (
        "samplers/test_named.py deis", "samplers/test_registry_settings.py deis",
        "samplers/test_registry.py deis",
    ),
    "samplers/dpm_2": (
        "samplers/test_named.py dpm_2", "samplers/test_registry_settings.py dpm_2",
        "samplers/test_path.py dpm_2", "samplers/test_registry.py dpm_2",
    ),
    "samplers/ipndm": (
        "samplers/test_named.py pndm", "samplers/test_registry_settings.py ipndm",
        "samplers/test_registry.py ipndm",
    ),
    "samplers/lms": (
        "samplers/test_methods.py lms", "samplers/test_registry_settings.py lms",
        "samplers/test_registry.py lms",
    ),
    "samplers/unipc": (
        "samplers/test_methods.py unipc", "samplers/test_registry_settings.py unipc",
        "samplers/test_registry.py unipc",
    ),
    "samplers/dpmpp": (
        "samplers/test_methods.py dpmpp sde_solvers",
        "samplers/test_registry_settings.py dpmpp_2m dpmpp_3m",
        "samplers/test_registry.py scan orders lower eta dpmpp_2m dpmpp_3m",
        "samplers/test_path.py dpmpp_2m dpmpp_3m",
    ),
    "samplers/lcm": (
        "samplers/test_named.py lcm", "samplers/test_registry_settings.py lcm",
        "samplers/test_registry.py lcm",
    ),
    "samplers/ancestral": (
        "samplers/test_dpmpp_single.py ancestral", "samplers/test_named.py ancestral",
        "samplers/test_path.py ancestral",
    ),
    "samplers/adaptive": ("samplers/test_adaptive.py",),
    "samplers/info": (
        "samplers/test_info.py",
        "samplers/test_registry.py budget combinations respects [heun]",
        "samplers/test_named.py published", "samplers/test_aliases.py",
    ),
    "samplers/aliases": ("samplers/test_aliases.py",),
    "samplers/request": ("samplers/test_request.py",),
    "generate": ("test_generate_hosts.py", "test_generate.py", "test_sampling_request.py"),
    "store/checkpoints": ("store/test_checkpoints.py", "train/test_checkpoint.py"),
    "train/step": (
        "train/test_step.py", "train/test_step_published.py", "train/test_step_scripted.py",
    ),
    "train/objective": ("train/test_objective.py",),
    "augment/drawing": (
        "augment/test_pipe.py draws gates whole kept signs least zero off nine bad labels_and",
    ),
    "augment/pipe": (
        "augment/test_pipe.py labels flips -matmul oblong identity gain their_batch dtype off bad",
    ),
    "data/pipeline": ("data/test_pipeline.py",),
}  # fmt: skip

PROMISED = ("PROMISES", "MEASURED_CHURN")
LIBRARIES = ("flax.linen", "hypothesis", "hypothesis.strategies", "jax", "optax", "pytest",
             "scipy.integrate", "scipy.stats", "orbax.checkpoint")  # fmt: skip

# Mutants that change no result, with the reason: module, part of the line, part of the change.
ACCEPTED: dict[tuple[str, str, str], str] = {
    ("seeds", "wide = np.uint64 if", "-> np.int64"): "the same lower bits",
    ("seeds", "got = ", ""): "the words of an error",
    ("seeds", "< 0.5", "<= 0.5"): "one draw in eight million",
    ("ema", "jnp.maximum(halflife_nimg, 1e-8)", "1e-08 ->"): "any tiny number keeps 1/0 away",
    ("train/objective", "jax.random.split", "3 -> 4"): "keys of a split do not depend on how many",
    ("train/objective", "keys[:, 2]", "2 -> 3"): "an index beyond the last is the last",
    ("train/step", "shapes = jax.eval_shape", "0 -> 1"): "all rounds have the same shapes",
    ("store/checkpoints", "json.dumps(digests, indent=1)", "1 -> 2"): "the layout of a file",
    ("store/checkpoints", "lines[0][:200]", "200 ->"): "how much of a message is shown",
    ("samplers/dpmpp_single", "safe = ", "1 -> 2"): "it divides a noise of 0",
    ("samplers/lms", "pad = ", ""): "distinct levels that no row uses",
    ("samplers/deis", "pad = ", ""): "distinct levels that no row uses",
    ("samplers/er_sde", "one = xp.where", "1.0 -> 1.1"): "a gap that no row uses",
    ("samplers/er_sde", "gap = xp.maximum", "-> at_end - clock(now)"): "it cuts off rounding",
    ("samplers/restart", "np.arange(num_steps) * 1.0", "/ 1.0"): "the same number",
    ("samplers/loop", "visited if trajectory else None", "-> visited"): "it is not returned",
    ("samplers/rows", "draws=np.append", "np.append(np.tile(drawn, steps), False) if uses"): (
        "nothing is drawn without coefficients"
    ),
    ("samplers/unipc", "xp.stack(", "-1 -> 1"): "the same axis",
    ("data/pipeline", ".random() < 0.5", "<= 0.5"): "no draw is 1/2",
    ("data/pipeline", "threads", ""): "how fast, not what",
    ("exact/contract", "multiply(-3.0)", "-> 3.3"): "any other image will do",
    ("exact/likelihood_promises", "multiply(-3.0)", "3.0 ->"): "any other image will do",
    ("exact/contract", "atol=1e-9", "1e-09 ->"): "between rounding and an influence",
    ("exact/reflected_promises", "1e-12", "1e-12 ->"): "no fraction is as near to 0 or 1",
}

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
# Calls whose first argument could stand for them.
CLAMPS = ("maximum", "minimum", "clip", "max", "min", "fold_in", "abs", "where", "_stream", "sqrt")
SWAPPED_NAMES = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "argmax": "argmin",
    "all": "any", "any": "all", "zeros_like": "ones_like", "ones_like": "zeros_like",
    "cos": "sin", "sin": "cos",
}  # fmt: skip
SYMMETRIC = {"maximum", "minimum", "max", "min", "hypot", "is_known"}
NUMBERS = {
    "sigma", "sigma_next", "sigma_to", "gamma", "x", "x_hat", "noise", "low", "high", "now",
    "after", "middle", "down", "sigma_min", "sigma_max", "beta_d", "beta_min", "width", "height",
    "ema", "params", "process_index", "process_count", "s_noise", "sigma_data", "shape", "z",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
      module: its name in MODULES.
      line: of the expression that was changed.
      text: that line of the module.
      before, after: the expression, as Python writes it.
      source: the whole module with the change.
    """

    module: str
    line: int
    text: str
    before: str
    after: str
    source: str

    @property
    def accepted(self) -> str:
        """Why it may survive; empty if it may not."""
        for (module, text, change), reason in ACCEPTED.items():
            if module == self.module and text in self.text and change in self.change:
                return reason
        return ""

    @property
    def change(self) -> str:
        """What became of what."""
        return f"{self.before} -> {self.after}"

    def __str__(self) -> str:
        return f"edm_jax/{self.module}.py:{self.line}: {self.change}"


def _variants(node: ast.expr) -> Iterator[ast.expr]:
    """Wrong expressions that could stand where ``node`` stands."""

    def changed(**fields: object) -> ast.expr:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    if isinstance(node, ast.Compare):
        for i, kind in enumerate(node.ops):
            if type(kind) in COMPARISONS:
                ops = [*node.ops[:i], COMPARISONS[type(kind)](), *node.ops[i + 1 :]]
                yield changed(ops=ops)
    elif isinstance(node, ast.BoolOp):
        yield changed(op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        yield changed(op=OPERATORS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield changed(value=not node.value)
        elif isinstance(node.value, int):
            yield changed(value=node.value + 1)
        elif isinstance(node.value, float):
            yield changed(value=node.value * 1.1 if node.value else 0.1)
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in CLAMPS and node.args:
            yield node.args[1] if name == "where" and len(node.args) > 1 else node.args[0]
        if name in SWAPPED_NAMES:
            func, new = copy.copy(node.func), SWAPPED_NAMES[name]
            setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", new)
            yield changed(func=func)
        if len(node.args) == 3 and name == "where":
            yield changed(args=[node.args[0], node.args[2], node.args[1]])
        # Exchanged numbers; what is symmetric, or could only crash, shows nothing.
        elif len(node.args) >= 2 and name not in SYMMETRIC:
            if all(getattr(a, "id", getattr(a, "attr", "")) in NUMBERS for a in node.args[:2]):
                yield changed(args=[node.args[1], node.args[0], *node.args[2:]])


def _is_text(node: ast.BinOp) -> bool:
    """Whether an operator joins paths, tuples or dicts, where another could only crash."""
    names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}
    plain = isinstance(node.left, ast.Tuple | ast.Dict | ast.List)
    right = isinstance(node.right, ast.Tuple | ast.Dict | ast.List)
    return plain or right or any(n == "path" or n.endswith(("_dir", "directory")) for n in names)


def _frozen(tree: ast.Module) -> set[int]:
    """Ids of nodes that are words, types or errors: changing them changes no result."""
    frozen: set[int] = set()

    def freeze(node: ast.AST | None) -> None:
        if node is not None:
            frozen.update(id(n) for n in ast.walk(node))

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            freeze(node.returns)
            for decorator in node.decorator_list:
                freeze(decorator)
            spec = node.args
            for arg in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]:
                freeze(arg and arg.annotation)
        elif isinstance(node, ast.AnnAssign):
            freeze(node.annotation)
        elif isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                freeze(decorator)
        elif isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            freeze(node)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in PROMISED:
            freeze(node)  # descriptions of samplers, measured by `validate`
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("check_number", "check_protocol", "isinstance", "field", "_first_line"):
                freeze(node)  # tests/test_arguments.py
            for keyword in node.keywords if name == "zip" else ():
                freeze(keyword)  # strict: a check of ours
    return frozen


def mutants_of(module: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its text."""
    source = (ROOT / "edm_jax" / f"{module}.py").read_text()
    tree = ast.parse(source)
    frozen, found, lines = _frozen(tree), [], source.splitlines()
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            for i, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.expr) or id(node) in frozen:
                    continue
                for variant in _variants(node):
                    _put(parent, field, i, variant)
                    text = ast.unparse(tree)
                    _put(parent, field, i, node)
                    change = lines[node.lineno - 1].strip(), ast.unparse(node), ast.unparse(variant)
                    found.append(Mutant(module, node.lineno, *change, text))
    return sorted(found, key=lambda m: (m.line, m.before, m.after))


def _put(parent: ast.AST, field: str, i: int, node: ast.expr) -> None:
    """Set the i-th node of a field."""
    value = getattr(parent, field)
    if isinstance(value, list):
        value[i] = node
    else:
        setattr(parent, field, node)


class _Wrong(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Loads the source of a mutant in place of its module."""

    def __init__(self, mutant: Mutant):
        self._mutant = mutant
        self._name = "edm_jax." + mutant.module.replace("/", ".")

    def find_spec(self, fullname: str, path: object, target: object = None):
        if fullname == self._name:
            return importlib.machinery.ModuleSpec(fullname, self, origin=self.get_filename())
        return None

    def get_filename(self, fullname: str = "") -> str:
        return str(ROOT / "edm_jax" / f"{self._mutant.module}.py")

    def get_data(self, path: str) -> bytes:
        return self._mutant.source.encode()


def _in_a_fork(work: Callable[[], int], limit: float) -> int | None:
    """Exit code of ``work`` in a process of its own; None if it took longer than ``limit``."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        code = 70
        try:
            code = int(work())
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def run_tests(files: tuple[str, ...], mutant: Mutant | None, limit: float) -> str:
    """``survived``, ``killed`` or ``killed (time)``."""
    import pytest

    def work() -> int:
        if mutant is not None:
            sys.meta_path.insert(0, _Wrong(mutant))
        words = {file: some for file, *some in map(str.split, files)}
        paths = [str(ROOT / "tests" / file) for file in words]
        quick = ["-m", "not slow and not soak"]
        options = ["-x", "-q", "-n", "0", *quick, "-p", "no:cacheprovider"]
        return pytest.main([*options, *paths], plugins=[_Cached(), _Chosen(words)])

    code = _in_a_fork(work, limit)
    return "killed (time)" if code is None else "survived" if code == 0 else "killed"


class _Cached:
    """Keeps every compiled program, so that a mutant compiles what it changes alone."""

    def pytest_collection_finish(self) -> None:
        import jax

        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class _Chosen:
    """Leaves the tests that have none of the words of their file, where there are some."""

    def __init__(self, words: dict[str, list[str]]):
        self._words = {ROOT / "tests" / file: some for file, some in words.items()}

    def pytest_collection_modifyitems(self, items: list) -> None:
        found = [(item.name, self._words[item.path]) for item in items]
        keep = [not some or any(word in name for word in some) for name, some in found]
        items[:] = [item for item, kept in zip(items, keep, strict=True) if kept]


def _load_what_does_not_change() -> None:
    """Libraries that every mutant needs, without starting a device (a fork would break it)."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # short programs: compile fast
    os.environ["XLA_FLAGS"] = compiler.flags()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="edm_jax-mutants-"))
    for name in LIBRARIES:
        importlib.import_module(name)
    hypothesis = sys.modules["hypothesis"]
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # one failure is enough
    hypothesis.settings.register_profile("mutate", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutate")
    assert not [m for m in sys.modules if m.startswith("edm_jax")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="names below edm_jax/; all by default")
    parser.add_argument("--count", type=int, default=20, help="mutants a module; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=float, default=600, help="seconds for a mutant")
    parser.add_argument("--only", default="", help="mutants whose description contains this")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--target", type=float, default=0.9, help="part to be noticed")
    asked = parser.parse_args(arguments)
    for module in asked.modules:
        if module not in MODULES:
            parser.error(f"no module {module!r}; there are {', '.join(MODULES)}")
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    if not asked.list:
        _load_what_does_not_change()
    noticed = counted = 0
    for module in asked.modules or MODULES:
        mutants = [m for m in mutants_of(module) if asked.only in str(m)]
        if asked.count and len(mutants) > asked.count:
            chosen = random.Random(f"{asked.seed} {module}").sample(
                range(len(mutants)), asked.count
            )
            mutants = [mutants[i] for i in sorted(chosen)]
        if asked.list:
            print(*mutants, sep="\n")
            continue
        if run_tests(MODULES[module], None, asked.limit) != "survived":
            print(f"{module}: its tests fail or take longer than --limit without any change")
            return 1
        killed = 0
        for mutant in mutants:
            result = run_tests(MODULES[module], mutant, asked.limit)
            if result == "survived" and mutant.accepted:
                result = f"accepted ({mutant.accepted})"
            else:
                counted += 1
                killed += result.startswith("killed")
            print(f"{result:9} {mutant}", flush=True)
        noticed += killed
        print(f"{module}: {killed} of {len(mutants)}", flush=True)
    if asked.list:
        return 0
    share = noticed / max(counted, 1)
    print(f"noticed {noticed} of {counted}: {share:.1%}")
    return 0 if share >= asked.target else 1


if __name__ == "__main__":
    sys.exit(main())
