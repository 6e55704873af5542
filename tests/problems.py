"""Small problems for the tests of meta-learning: a quadratic, networks, and what compares gradients."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dsaml_jax import meta


def quadratic(params, batch):
    """0.5 (x - c)' A (x - c): one gradient step multiplies x - c by (I - rate A)."""
    difference = params - batch["centre"]
    return 0.5 * difference @ batch["matrix"] @ difference


def quadratic_tasks(dtype=np.float32, same_matrix=True, tasks=5, seed=0):
    """(params [4], support, query): positive definite matrices, far from diagonal."""
    random = np.random.RandomState(seed)
    roots = random.randn(2, tasks, 4, 4)
    matrices = roots @ roots.swapaxes(-1, -2) / 4
    if same_matrix:
        matrices[1] = matrices[0]
    centres = random.randn(2, tasks, 4)
    batches = [
        {"centre": jnp.asarray(centre, dtype), "matrix": jnp.asarray(matrix, dtype)}
        for centre, matrix in zip(centres, matrices, strict=True)
    ]
    return jnp.asarray(random.randn(4), dtype), *batches


def mlp_loss(params, batch):
    """A network of the user's own: this library's meta-learning knows nothing of music."""
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean(jnp.square(hidden @ params["w2"] - y))


def mlp(dtype=np.float32, tasks=3, width=16):
    """(params, support, query) of :func:`mlp_loss`."""
    random = np.random.RandomState(1)
    shapes = {"w1": (2, width), "b1": (width,), "w2": (width, 1)}
    params = {name: jnp.asarray(random.randn(*shape), dtype) for name, shape in shapes.items()}
    data = [jnp.asarray(random.randn(tasks, 8, n), dtype) for n in (2, 1, 2, 1)]
    return params, tuple(data[:2]), tuple(data[2:])


def deep_loss(params, batch, layers=6):
    """Large activations, few parameters: what rematerialisation is for."""
    x = batch
    for _ in range(layers):
        x = jnp.tanh(x @ params)
    return jnp.mean(jnp.square(x))


class Upstream:
    """A network on encoded inputs: everything a gradient may have to reach through the inner steps.

    `theta` holds what is learned (`learned`), an encoder in front of support and query (`encoder`), values that the
    loss closes over (`closed`). The batch has integers in it. With `dropout` the loss takes a key.
    """

    def __init__(self, algorithm, dtype=np.float32, *, dropout=False, tasks=2, width=5):
        random = np.random.RandomState(4)
        draw = lambda *shape: jnp.asarray(random.randn(*shape), dtype)  # noqa: E731
        params = {
            "body": {"w": draw(3, width), "b": draw(width)},
            "head": {"w": draw(width, 2), "b": draw(2)},
        }
        self.algorithm = algorithm
        self.theta = {
            "learned": algorithm.init(params),
            "encoder": draw(3, 3),
            "closed": {"scale": 1 + draw(2) / 4, "decay": jnp.asarray(0.02, dtype)},
        }
        self.raw = tuple((draw(tasks, 6, 3), draw(tasks, 6, 2)) for _ in range(2))
        self.group = jnp.asarray(random.randint(0, 2, (tasks, 6)))
        self.key = jax.random.key(5) if dropout else None

    def loss_fn(self, closed):
        def loss(params, batch, key=None):
            x, y, group = batch
            hidden = jnp.tanh(x @ params["body"]["w"] + params["body"]["b"][None])
            if key is not None:
                keep = jax.random.bernoulli(key, 0.7, hidden.shape)
                hidden = jnp.where(keep, hidden, jnp.zeros_like(hidden))
            hidden = hidden * closed["scale"][group][:, None]
            error = hidden @ params["head"]["w"] + params["head"]["b"][None] - y
            decay = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
            return jnp.mean(jnp.square(error)) + closed["decay"] * decay

        return loss

    def batches(self, encoder):
        return [(jnp.tanh(x @ encoder), y, self.group) for x, y in self.raw]

    def meta_gradient(self, theta):
        """`(value, gradient by what is learned)`."""
        return meta.meta_gradient(
            self.loss_fn(theta["closed"]), theta["learned"], *self.batches(theta["encoder"]),
            algorithm=self.algorithm, key=self.key,
        )  # fmt: skip

    def value(self, theta):
        """The same value without `meta_gradient`, so that one reverse pass reaches everything."""
        loss = self.loss_fn(theta["closed"])
        keys = None if self.key is None else jax.random.split(self.key, (len(self.group), 2))

        def task(support, query, keys):
            inner, outer = (None, None) if keys is None else keys
            adapted = self.algorithm.adapt(loss, theta["learned"], support, inner)
            return loss(adapted, query, outer)

        return jnp.mean(jax.vmap(task)(*self.batches(theta["encoder"]), keys))


def relative_error(actual, expected):
    """L2 of the difference by L2 of the expected: the largest over the leaves, none of which may be 0."""
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    errors = []
    for a, b in leaves:
        assert np.linalg.norm(b) > 0
        errors.append(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))
    assert errors
    return max(errors)


def slope(value_of, point, direction, size):
    """Central difference."""
    ahead, behind = (
        value_of(jax.tree.map(lambda p, d, s=sign: p + s * size * d, point, direction))
        for sign in (1, -1)
    )
    return float(ahead - behind) / (2 * size)


def along(gradient, direction):
    """Inner product of two trees."""
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    return float(sum(jnp.vdot(g, d) for g, d in leaves))


def directions(point, seed=2):
    """Normal draws shaped as the point: for each of its leaves, one that is zero elsewhere."""
    random = np.random.RandomState(seed)
    leaves, structure = jax.tree.flatten(point)
    for i in range(len(leaves)):
        one = [
            jnp.asarray(random.randn(*leaf.shape) if i == j else np.zeros(leaf.shape), leaf.dtype)
            for j, leaf in enumerate(leaves)
        ]
        yield jax.tree.unflatten(structure, one)


def equations(jaxpr, inside=()):
    """Every equation of a jaxpr and of those within it, with the names of the primitives around it."""
    for equation in jaxpr.eqns:
        yield equation, inside
        within = (*inside, equation.primitive.name)
        for value in itertools.chain(*map(_listed, equation.params.values())):
            value = getattr(
                value, "traced", value
            )  # a custom rule, as JAX from 0.12.0.1 on keeps it
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, within)


def _listed(value):
    return value if isinstance(value, tuple | list) else [value]
