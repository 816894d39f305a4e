"""The smallest objective with a frozen tower, for tests of the training loop."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core.params import param
from flamingo_jax.core.precision import Policy
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import optimizer as optimizer_lib
from flamingo_jax.training.not_finite import accept_all
from flamingo_jax.training.objective import Objective, WeightRule
from flamingo_jax.training.state import abstract_weights, lay_out, traits
from flamingo_jax.training.step import make_step

WIDTH, HIDDEN = 4, 8
OPTIMIZER = optimizer_lib.OptimizerConfig(learning_rate=0.05, warmup_steps=2)


class _Fake(hk.Module):
    def __call__(self, x):
        normal = hk.initializers.RandomNormal(0.5)
        tower = param("tower", (WIDTH, HIDDEN), ("embed", "mlp"), normal)
        hidden = jnp.tanh(x.astype(tower.dtype) @ tower)
        head = param("head", (HIDDEN,), ("mlp",), normal)
        return (hidden @ head + param("bias", (), (), jnp.zeros)).astype(jnp.float32)


class _Model:
    """The weights of the objective: `objective.HasWeights`."""

    def __init__(self):
        self._functions = hk.transform(lambda x: _Fake(name="fake")(x))
        self.apply = self._functions.apply

    def init(self, rng):
        return self._functions.init(rng, jnp.zeros((1, WIDTH)))

    compute_form_init = init

    def compute_form(self, params):
        return params


_MODEL = _Model()


TOWER, HEAD = WeightRule(r".*/tower", frozen=True), WeightRule(r".*/head")


def make_objective(**changes):
    """Mean squared error; {"x": [B, WIDTH], "y": [B]} batches."""

    def loss(params, batch, rng):
        del rng
        error = _MODEL.apply(params, None, batch["x"]) - batch["y"]
        return jnp.mean(jnp.square(error)), {"rows": jnp.float32(len(error))}

    parts = {
        "name": "fake",
        "model": _MODEL,
        "loss": loss,
        "table": (TOWER, HEAD, WeightRule(r".*/bias", decay=0.0)),
        "gauges": lambda params: {"gates/bias": jnp.tanh(params["fake"]["bias"])},
    }
    return Objective(**{**parts, **changes})


def batch(seed, rows=8):
    """Returns a batch that depends on the seed alone."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    return {"x": x, "y": x.sum(axis=1) + np.float32(0.5)}


def batches(start, names=("pages", "pairs")):
    """Yields batches for updates start, start + 1, ..., without end."""
    step = start
    while True:
        yield {name: batch(1000 * step + i) for i, name in enumerate(names)}
        step += 1


class Run:
    """A state's layout and the compiled step."""

    def __init__(
        self,
        mesh=(1, 1, 1),
        compute="float32",
        weights=None,
        config=OPTIMIZER,
        steps=100,
        objective=None,
        accept=accept_all,
    ):
        objective = objective or make_objective()
        size = int(np.prod(mesh))
        self.mesh = make_mesh(MeshConfig(*mesh), jax.devices()[:size])
        self.policy = Policy(compute)
        self.schedule = optimizer_lib.make_schedule(config, steps)
        weights_of_model = abstract_weights(objective)
        self.optimizer = optimizer_lib.make_optimizer(
            config, self.schedule, traits(objective, weights_of_model)
        )
        self.layout = lay_out(objective, weights_of_model, self.optimizer, self.mesh, self.policy)
        self.parts = {
            "objective": objective,
            "optimizer": self.optimizer,
            "schedules": optimizer_lib.make_schedules(config, steps),
            "weights": weights or {"pages": 1.0, "pairs": 0.2},
            "policy": self.policy,
            "accept": accept,
        }
        self.step = make_step(self.layout, MeshConfig(*mesh).layout(self.mesh), **self.parts)

    def init(self, seed=0):
        """Returns the state at step 0."""
        return self.layout.init(jax.random.key(seed))


def assert_trees_equal(a, b):
    """Compares two trees bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
