"""What the tests would not notice: the metrics, the losses and the sampler, changed in one place at a time.

Claim: every change that a caller could see fails a test; the ones that survive change nothing, for the reason given here.
Command: `python experiments/benchmarks/mutants.py` (`--only losses`; `--list` runs nothing).
Result: `experiments/results/mutants.md`. It ends with an error where a survivor has no reason.

A mutant is the module's own text with one edit: an operator, a comparison, a number, a truth value or a word exchanged, a
`not` or a minus dropped, a condition turned round, `minimum` for `maximum` and the like, a call replaced by what it is given,
a keyword argument or a whole statement left out. It is imported instead of the module, by processes forked after JAX has
been imported; the files stay as they are.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from timing import measured_on, write_result

ROOT = Path(__file__).parents[2]
TESTS = {
    "metrics": ("tests/test_metrics.py",),
    "losses": ("tests/test_losses.py",),
    "corpus.tasks": ("tests/test_tasks.py",),
}
SLOWEST = 240
"""Seconds after which a mutant counts as noticed: it hangs."""

SWAPPED_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
    ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED_NAMES = {
    "min": "max", "minimum": "maximum", "any": "all", "zeros": "ones", "zeros_like": "ones_like",
    "argmin": "argmax", "sum": "mean", "isnan": "isfinite",
}  # fmt: skip
SWAPPED_NAMES |= {second: first for first, second in SWAPPED_NAMES.items()}
REASONS: dict[str, tuple[str, ...]] = {
    "counts differ only where nothing is unmasked; what comes of 0/0 is taken for a constant, and its gradient ends in `_checked`": (
        "ccc: count = (jnp.sum(weights, -1))",
        "rmse: count = (jnp.sum(weights, -1))",
        "_centred: count = (jnp.sum(weights, -1, keepdims=True))",
    ),
    "differs for one step only, whose centred curve is 0 whatever it is divided by": (
        "ccc: count = jnp.maximum(jnp.sum(weights, -1), 2.0)",
        "_centred: count = jnp.maximum(jnp.sum(weights, -1, keepdims=True), 2.0)",
    ),
    "differs for a spread of exactly 1e-16": (
        "ccc: enough = (spread >= MIN_SPREAD)",
    ),
    "only keeps the branch that is not taken from dividing by 0": (
        "ccc: return jnp.where(enough, 2.0 * covariance / jnp.where(enough, spread, 2.0), 0.0)",
        "pcc: norms = jnp.where(constant, 2.0, norm_a * norm_b + PCC_EPSILON)",
        "_safe_sqrt: return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 2.0)), 0.0)",
    ),
    "what the origin adds to the gradient cancels; without it that is not computed": (
        "centre: origin = (jnp.take_along_axis(x, first, -1))",
    ),
    "JAX takes the last place for one beyond the end, and this axis has one": (
        "_centred: return a, b, weights, (mean_a - mean_b)[..., 1]",
    ),
    "the metrics refuse the same shapes, and labels of the right shape have the right rank": (
        "dsaml_loss: without chex.assert_equal_shape([out.arousal, out.valence, arousal, valence])",
        "dsaml_loss: without chex.assert_equal_shape([arousal, mask])",
        "dsaml_loss: ([out.arousal, out.valence, arousal, valence])",
        "dsaml_loss: ([arousal, mask])",
    ),
    "the next line sums over the rest": (
        "diagonal_attention_loss: error = (jnp.square(mean - target) * counted)",
        "diagonal_attention_loss: error = jnp.sum(jnp.square(mean - target) * counted, (1))",
        "diagonal_attention_loss: error = jnp.sum(jnp.square(mean - target) * counted, -2)",
    ),
    "its weight is 0": (
        "squared_error: error = jnp.square(out.arousal - jnp.where(mask, arousal, 1.0))",
        "squared_error: error = error + jnp.square(out.valence - jnp.where(mask, valence, 1.0))",
    ),
    "the sum is an array; only the type checker does not know": (
        'dsaml_loss: terms["score"] = (score) / 6.0',
    ),
    "the same axis, counted from the front, or the default": (
        "dsaml_loss: counted = jnp.any(mask, (1)).astype(out.arousal.dtype)",
        "diagonal_attention_loss: diagonal = jnp.diagonal(last, axis1=(2), axis2=-1)",
        "make_pool: excluded=np.stack([people[~enough], counts[~enough]], axis=(1)),",
        "in_front: order = (np.argsort(~chosen, kind='stable')).astype(np.int32)",
        "sample_tasks: order = (np.argsort(draw.random((rounds, len(pool.annotators))), kind='stable'))",
        "sample_tasks: shuffled = np.take_along_axis(pool.ratings[who], (np.argsort(keys, kind='stable')), 1)",
        "evaluation_tasks: shuffled = np.take_along_axis(pool.ratings, (np.argsort(keys, kind='stable')), 1)",
    ),
    "no two of the doubles are equal, or only those of padding": (
        "sample_tasks: order = (np.argsort(draw.random((rounds, len(pool.annotators))), axis=1))",
        "sample_tasks: shuffled = np.take_along_axis(pool.ratings[who], (np.argsort(keys, axis=1)), 1)",
        "_random_tasks: shuffled = everything[(np.argsort(draw.random(len(everything))))]",
        "evaluation_tasks: shuffled = np.take_along_axis(pool.ratings, (np.argsort(keys, axis=1)), 1)",
    ),
    "PCG64 makes the same SeedSequence of it": (
        "uniform_stream: return np.random.Generator(np.random.PCG64(((seed, *stream))))",
    ),
    "what is too wide is cut": (
        "_padded: short = max(1, width - ratings.shape[1])",
        "_padded: short = max(0, (width + ratings.shape[1]))",
    ),
    "int32 already: the pool's tables are": (
        "song_and_window: return songs, (window)",
        "_batch: (support),",
        "_batch: (query),",
    ),
    "all but `random` means by annotator; the configuration refuses other words": (
        "sample_tasks: kind: str = '_annotator',",
    ),
    "numpy finds the size for any negative number": (
        "sample_tasks: who = order.reshape(-2)[:tasks]",
        "_with_all_support_windows: shape = (len(batch.support), -2)",
    ),
    "any number from 1 on sorts last": (
        "sample_tasks: keys[pool.ratings[who] < 0] = 4.0",
        "evaluation_tasks: keys[pool.ratings < 0] = 4.0",
    ),
    "as many evenly spread places as there are, are all of them": (
        "evaluation_tasks: if most is not None and (len(chosen) >= most):",
        "same_song_tasks: if most is not None and (len(ratings) >= most):",
    ),
    "a list of indices indexes like an array of them": (
        "evaluation_tasks: who = ([person for person, _ in chosen])",
    ),
    "the window of padding is set to 0 in the end": (
        "_with_all_support_windows: window = pool.windows[batch.support[..., None], np.where(real, place, 1)]",
    ),
}  # fmt: skip
"""Why no test can, or need, notice -> the mutants, as `function: line as changed`."""

SURVIVORS = {mutant: reason for reason, mutants in REASONS.items() for mutant in mutants}


# ---- Making them.


@dataclass(frozen=True)
class Mutant:
    """One edit of a module.

    Attributes:
      module: its name below `dsaml_jax`.
      function: that it is in, `-` at the top.
      line: number of the first line changed.
      before: the lines that the edit touches, as one.
      after: the same, changed.
      source: of the whole module, changed.
    """

    module: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Names it as long as its line stays as it is."""
        if self.after == "pass":
            return f"{self.function}: without {self.before}"
        return f"{self.function}: {self.after}"

    @property
    def digest(self) -> str:
        """Of the whole changed module."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


class _Finder(ast.NodeVisitor):
    """Collects `(node, text to put in its place)` of a module, and the function each is in."""

    def __init__(self) -> None:
        self.edits: list[tuple[str, ast.AST, str]] = []
        self._function = "-"

    def _edit(self, node: ast.AST, new: ast.AST | str) -> None:
        text = new if isinstance(new, str) else f"({ast.unparse(new)})"
        self.edits.append((self._function, node, text))

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._function = self._function, node.name
        self.generic_visit(node)
        self._function = outer

    def visit_Import(self, node: ast.Import) -> None:
        """Nothing to change."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Nothing to change."""

    def visit_Raise(self, node: ast.Raise) -> None:
        """The words of an error are not behaviour; that it is raised is."""
        self._edit(node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):  # a docstring
            return
        self._edit(node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._function == "-" and isinstance(node.value, ast.Subscript):  # an alias of a type
            return
        self._edit(node, "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self._edit(node.test, ast.UnaryOp(ast.Not(), node.test))
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_BinOp(self, node: ast.BinOp) -> None:
        swapped = SWAPPED_OPERATORS.get(type(node.op))
        if swapped:
            self._edit(node, ast.BinOp(node.left, swapped(), node.right))  # type: ignore[arg-type]
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._edit(node, ast.BoolOp(SWAPPED_OPERATORS[type(node.op)](), node.values))  # type: ignore[arg-type]
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for place, operator in enumerate(node.ops):
            operators = list(node.ops)
            operators[place] = SWAPPED_OPERATORS[type(operator)]()  # type: ignore[call-overload]
            self._edit(node, ast.Compare(node.left, operators, node.comparators))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._edit(node, node.operand)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._edit(node, repr(not value))
        elif isinstance(value, int | float):
            self._edit(node, repr(value * 2 if isinstance(value, float) and value else value + 1))
        elif isinstance(value, str):
            self._edit(node, repr("_" + value))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._edit(node, repr("_"))

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in SWAPPED_NAMES:
            other = SWAPPED_NAMES[name]
            new = ast.Attribute(called.value, other) if isinstance(called, ast.Attribute) else ast.Name(other)  # fmt: skip
            self._edit(node, ast.Call(new, node.args, node.keywords))
        of_library = (
            isinstance(called, ast.Attribute)
            and ast.unparse(called).split(".")[0] in ("jax", "jnp", "np", "chex")
        )  # fmt: skip
        if of_library and node.args:
            self._edit(node, node.args[0])
        elif isinstance(called, ast.Attribute) and not of_library:
            self._edit(node, called.value)
        for keyword in node.keywords:
            others = [other for other in node.keywords if other is not keyword]
            self._edit(node, ast.Call(called, node.args, others))
        self.generic_visit(node)


def mutants_of(module: str) -> list[Mutant]:
    """All the mutants of a module, in the order of its lines."""
    source = (ROOT / "dsaml_jax" / f"{module.replace('.', '/')}.py").read_text()
    finder = _Finder()
    finder.visit(ast.parse(source))
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = {}
    for function, node, text in finder.edits:
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        begin = starts[first - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[last - 1] + node.end_col_offset  # type: ignore[attr-defined]
        changed = source[:begin] + text + source[end:]
        tail = len(source) - starts[last]
        after = changed[starts[first - 1] : len(changed) - tail]
        before = source[starts[first - 1] : starts[last]]
        mutant = Mutant(module, function, first, _one_line(before), _one_line(after), changed)
        if mutant.after != mutant.before:
            found.setdefault(changed, mutant)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _one_line(text: str) -> str:
    return " ".join(line.split("#")[0].strip() for line in text.splitlines()).strip()


# ---- Trying them.


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in the place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self._name, self._source = f"dsaml_jax.{mutant.module}", mutant.source

    def find_spec(self, fullname: str, path: object = None, target: object = None):  # noqa: ANN201
        if fullname != self._name:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, f"<mutant of {self._name}>", "exec"), module.__dict__)


def survives(mutant: Mutant | None, tests: tuple[str, ...]) -> bool:
    """Whether the tests pass, in a process of their own; None is the module as it is."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _run_tests(mutant, tests)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + SLOWEST
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.02)


class _KeepPrograms:
    """Pytest plugin: keeps even the smallest compiled program, which otherwise every mutant would compile again."""

    def pytest_collection_finish(self) -> None:
        import jax

        jax.config.update("jax_compilation_cache_dir", os.environ["MUTANTS_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _run_tests(mutant: Mutant | None, tests: tuple[str, ...]) -> int:
    import hypothesis
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, _Instead(mutant))
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    # The same examples for every mutant, none kept, and no time spent on smaller ones.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    plain = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-k", "not published"]  # fmt: skip
    early = ["-W", "ignore:Module already imported"]
    files = (str(ROOT / test) for test in tests)
    return int(pytest.main([*plain, *early, *files], plugins=[_KeepPrograms()]))


def _import_once() -> None:
    """What every test imports is imported before the forks; no device is touched."""
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for name in ("chex", "flax.linen", "hypothesis.extra.numpy", "jax.numpy", "optax", "pytest"):
        importlib.import_module(name)


# ---- Telling.


def report(counts: dict[str, tuple[int, list[Mutant]]], time_spent: str) -> str:
    """Markdown of what survived, module by module."""
    lines = [
        "# Mutants of the metrics, the losses and the sampler", "",
        "Command: `python experiments/benchmarks/mutants.py`. The arrays of the published implementation, which not every "
        "machine has, were not used.", "",
        "| module | tests | mutants | noticed | survive |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for module, (total, left) in counts.items():
        tests = ", ".join(f"`{test}`" for test in TESTS[module])
        lines.append(
            f"| `dsaml_jax/{module}.py` | {tests} | {total} | {total - len(left)} | {len(left)} |"
        )
    for module, (_, left) in counts.items():
        if not left:
            continue
        lines += ["", f"## What survives in `{module}.py`", "", "| line | is | survives as | why |", "|---|---|---|---|"]  # fmt: skip
        for mutant in left:
            why = SURVIVORS.get(mutant.key, "**no reason is known**")
            cells = (f"`{text}`".replace("|", "\\|") for text in (mutant.before, mutant.after))
            lines.append(f"| {mutant.line} | {' | '.join(cells)} | {why} |")
    lines += ["", f"{time_spent} {measured_on('jax', 'numpy', 'pytest', 'hypothesis')}"]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Tries all mutants and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(TESTS), help="one module, and no result file")
    parser.add_argument("--function", default="", help="mutants in functions of this name only")
    parser.add_argument(
        "--noticed", type=Path, help="file of mutants noticed before, which are not tried again"
    )
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MUTANTS_CACHE"] = cache
        run(options)


def run(options: argparse.Namespace) -> None:
    """Tries the mutants that were asked for."""
    modules = [options.only] if options.only else list(TESTS)
    counts: dict[str, tuple[int, list[Mutant]]] = {}
    noticed = set()
    if options.noticed and options.noticed.is_file():
        noticed = set(json.loads(options.noticed.read_text()))
    start = time.monotonic()
    _import_once()
    for module in modules:
        found = [m for m in mutants_of(module) if options.function in ("", m.function)]
        if options.list:
            print(*(f"{m.line}\t{m.key}" for m in found), sep="\n")
            continue
        if not survives(None, TESTS[module]):
            raise SystemExit(f"{TESTS[module]} fail as things are")
        left = []
        for number, mutant in enumerate(found, 1):
            if mutant.digest in noticed:
                continue
            if not survives(mutant, TESTS[module]):
                noticed.add(mutant.digest)
                if options.noticed:
                    options.noticed.write_text(json.dumps(sorted(noticed)))
            else:
                left.append(mutant)
                print(f"{module} {number}/{len(found)} survives: {mutant.line}\t{mutant.key}", flush=True)  # fmt: skip
        counts[module] = len(found), left
        print(f"{module}: {len(left)} of {len(found)}", f"{time.monotonic() - start:.0f} s")
    if options.list:
        return
    again = ", those aside that an earlier run noticed" if options.noticed else ""
    text = report(counts, f"{(time.monotonic() - start) / 60:.0f} minutes{again}.")
    if options.only or options.function:
        print(text)
    else:
        write_result("mutants", text)
    unexplained = [m.key for _, left in counts.values() for m in left if m.key not in SURVIVORS]
    if unexplained:
        raise SystemExit("survivors without a reason:\n" + "\n".join(unexplained))


if __name__ == "__main__":
    main()
