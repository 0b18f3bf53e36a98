"""Each PRNG key serves one draw: two draws from one key are correlated, even of different distributions.

Read from the source, since most of what draws is compiled elsewhere or never traced. A key is drawn from, split, or
handed to one function, once; or folded with numbers, and then nothing else: `split(key, n)[i]` is `fold_in(key, i)`.
`jax.random.clone` says where the same draw is meant to come again.
"""

import ast
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgen.commands.making import Trained
from jaxgen.config import Config, check
from jaxgen.data.source import batch_indices
from jaxgen.errors import UserError
from jaxgen.experiment import initializer
from jaxgen.keys import key_of
from jaxgen.types import Model

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("jaxgen", "experiments") for path in (ROOT / folder).rglob("*.py"))
NAMED = re.compile(r"(\w+_)?key$")
MAKERS = {f"jax.random.{name}" for name in ("key", "split", "fold_in", "wrap_key_data", "clone")}
FRESH, FOLDED, SPENT = range(3)


def makes_keys(node: ast.AST) -> bool:
    if isinstance(node, ast.IfExp):
        return makes_keys(node.body) or makes_keys(node.orelse)
    return isinstance(node, ast.Call) and any(ast.unparse(part) in MAKERS for part in ast.walk(node.func))


class Reuse:
    """Walks a function in the order in which it runs; `found` lists the lines where a key is used again."""

    def __init__(self):
        self.found: set[tuple[int, str]] = set()
        self.state: dict[str, int] = {}
        self.over = False  # after a return

    def visit(self, node: ast.AST) -> None:
        getattr(self, HANDLERS.get(type(node), "children"))(node)

    def children(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    # Names ------------------------------------------------------------------------------------------------------------

    def bind(self, target: ast.AST, *, key: bool = False, keys: bool = False) -> None:
        """A name becomes a key: any where one is made, or among `keys` one that is called so."""
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self.state.pop(node.id, None)
                if key or (keys and NAMED.match(node.id)):
                    self.state[node.id] = FRESH

    def holds_keys(self, node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self.state for n in ast.walk(node))

    def use(self, node: ast.Name, how: int) -> None:
        before = self.state.get(node.id)
        if before is None or self.over:
            return
        if before == SPENT or (before == FOLDED and how == SPENT):
            self.found.add((node.lineno, node.id))
        self.state[node.id] = how

    def name(self, node: ast.Name) -> None:
        self.use(node, SPENT)

    def compare(self, node: ast.Compare) -> None:
        if not isinstance(node.ops[0], ast.Is | ast.IsNot):
            self.children(node)

    def call(self, node: ast.Call) -> None:
        names = {n.attr for part in (node.func, *node.args) for n in ast.walk(part) if isinstance(n, ast.Attribute)}
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        for part in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(part, ast.Name) and name not in ("clone", "key_data", "eval_shape"):
                direct = name in ("fold_in", "partial") or not isinstance(node.func, ast.Attribute | ast.Name)
                self.use(part, FOLDED if direct and "fold_in" in names else SPENT)
            elif not isinstance(part, ast.Name):
                self.visit(part)
        self.visit(node.func)

    def assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)  # *names at the end hold no keys here
            for one, value in pairs:
                if isinstance(one, ast.Name | ast.Tuple):
                    self.bind(one, key=makes_keys(value))
                else:
                    self.visit(one)

    # Branches and loops -----------------------------------------------------------------------------------------------

    def branches(self, *each: list[ast.AST]) -> None:
        before, after, over = dict(self.state), [], []
        for nodes in each:
            self.state, self.over = dict(before), False
            self.block(nodes)
            over.append(self.over)
            if not self.over:
                after.append(self.state)
        self.over = all(over)
        self.state = {}
        for state in after:
            for name, how in state.items():
                self.state[name] = max(how, self.state.get(name, FRESH))

    def block(self, nodes: list[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def if_statement(self, node: ast.If) -> None:
        self.visit(node.test)
        self.branches(node.body, node.orelse)

    def if_expression(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self.branches([node.body], [node.orelse])

    def attempt(self, node: ast.Try) -> None:
        self.block(node.body)
        self.branches([*node.orelse], *(handler.body for handler in node.handlers))
        self.block(node.finalbody)

    def leave(self, node: ast.AST) -> None:
        self.children(node)
        self.over = True

    def for_loop(self, node: ast.For) -> None:
        keys = self.holds_keys(node.iter)
        self.visit(node.iter)
        for _ in range(2):
            self.bind(node.target, keys=keys)
            self.branches(node.body, [])
        self.block(node.orelse)

    def while_loop(self, node: ast.While) -> None:
        for _ in range(2):
            self.visit(node.test)
            self.branches(node.body, [])

    def comprehension(self, node: ast.AST) -> None:
        first, *rest = node.generators
        outer = dict(self.state)
        self.visit(first.iter)
        for _ in range(2):
            self.bind(first.target, keys=self.holds_keys(first.iter))
            for generator in rest:
                self.visit(generator.iter)
                self.bind(generator.target, keys=self.holds_keys(generator.iter))
            self.block([*(test for generator in node.generators for test in generator.ifs)])
            self.block([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.state = {name: self.state.get(name, how) for name, how in outer.items()}

    # Functions --------------------------------------------------------------------------------------------------------

    def function(self, node: ast.FunctionDef | ast.Lambda) -> None:
        """What it uses of the function around it counts there, once."""
        outer = dict(self.state)
        own = {one.arg: one.annotation for one in ast.walk(node.args) if isinstance(one, ast.arg)}
        for name, kind in own.items():
            self.state.pop(name, None)
            if NAMED.match(name) and (kind is None or re.search("Key|Array", ast.unparse(kind))):
                self.state[name] = FRESH
        self.block(node.body if isinstance(node.body, list) else [node.body])
        self.over = False
        self.state = {n: how if n in own else self.state.get(n, how) for n, how in outer.items()}


HANDLERS = {
    ast.Name: "name", ast.Compare: "compare", ast.Call: "call", ast.Assign: "assign", ast.If: "if_statement",
    ast.IfExp: "if_expression", ast.Try: "attempt", ast.For: "for_loop", ast.While: "while_loop",
    **dict.fromkeys((ast.Return, ast.Raise, ast.Continue, ast.Break), "leave"),
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp), "comprehension"),
    **dict.fromkeys((ast.FunctionDef, ast.Lambda), "function"),
}  # fmt: skip


def reused(source: str) -> list[tuple[int, str]]:
    found = Reuse()
    found.visit(ast.parse(textwrap.dedent(source)))
    return sorted(found.found)


def test_split_and_fold_in_give_the_same_keys():
    """Why a key that is folded may not be split, too."""
    key = jax.random.key(3)
    folded = [jax.random.key_data(jax.random.fold_in(key, i)).tolist() for i in range(3)]
    assert jax.random.key_data(jax.random.split(key, 3)).tolist() == folded


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("a = normal(key)\nb = uniform(key)", [3]),
        ("a, b = init(key), normal(key)", [2]),
        ("a = normal(key)\nb = normal(jax.random.fold_in(key, 1))", [3]),
        ("one, two = jax.random.split(key)\nreturn normal(one) + normal(two) + normal(one)", [3]),
        ("return [normal(key) for _ in range(3)]", [2]),
        ("for _ in range(3):\n    normal(key)", [3]),
        ("if wanted:\n    a = normal(key)\nb = normal(key)", [4]),
        ("again = lambda: normal(key)\nb = normal(key)", [3]),
        ("for i in range(3):\n    normal(jax.random.fold_in(key, i))\nsplit(key)", [4]),
        # as it should be
        ("key, own = jax.random.split(key)\nreturn normal(key) + normal(own)", []),
        ("if wanted:\n    return normal(key)\nreturn uniform(key)", []),
        ("a = normal(key) if wanted else uniform(key)", []),
        ("return [normal(jax.random.fold_in(key, i)) for i in range(3)]", []),
        ("return [normal(key) for key in jax.random.split(key, 3)]", []),
        ("return {} if key is None else {'key': key}", []),
        ("a = normal(jax.random.clone(key))\nb = normal(key)", []),
    ],
)
def test_reuse_is_found_and_nothing_else(body, lines):
    source = "def f(key, wanted):\n" + textwrap.indent(body, "    ")
    assert [line for line, _ in reused(source)] == lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_key_is_used_twice(path):
    assert reused(path.read_text()) == []


# Seeds ----------------------------------------------------------------------------------------------------------------

SEEDS = 0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1


def data_of(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_different_seeds_have_different_keys_and_orders():
    assert len({data_of(key_of(seed)) for seed in SEEDS}) == len(SEEDS)
    for seed in SEEDS[:3]:
        assert data_of(key_of(seed)) == data_of(jax.random.key(seed))
    orders = [batch_indices(60, 60, seed=seed, start=epoch, stop=epoch + 1) for seed in SEEDS for epoch in range(3)]
    assert len({tuple(order.ravel()) for order in orders}) == len(orders)
    expected = np.random.default_rng((7, 2)).permutation(60)  # the order of a small seed is what it always was
    np.testing.assert_array_equal(batch_indices(60, 60, seed=7, start=2, stop=3)[0], expected)


def test_runs_of_different_seeds_start_differently_together_or_alone():
    def init(key, batch):
        return {"network": jax.random.normal(key)}

    model = Model(init=init, objectives=(), evaluate=init, sample=init)
    batch = {"x": np.zeros((3, 1))}
    alone = [initializer(Config(seed=seed), model)(batch) for seed in range(2**32 - 1, 2**32 + 2)]
    together = initializer(Config(seed=2**32 - 1, seeds=3), model)(batch)
    values = [float(state.params["network"]) for state in alone]
    np.testing.assert_array_equal(together.params["network"], values)
    assert len({*values, float(initializer(Config(), model)(batch).params["network"])}) == 4


def test_samples_of_different_seeds_are_different():
    keys = [Trained(**dict.fromkeys(Trained._fields) | {"seed": seed}).key for seed in (0, 2**32)]
    assert data_of(keys[0]) == data_of(jax.random.key(0)) != data_of(keys[1])


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(UserError, match=f"--seed {seed}: expected"):
        check(Config(seed=seed))


if __name__ == "__main__":
    for path in FILES:
        for line, name in reused(path.read_text()):
            print(path.relative_to(ROOT), line, name, path.read_text().splitlines()[line - 1].strip())
