"""A distribution of three tokens of three values, all of whose conditionals are known, and laws of samplers by enumeration."""

import itertools

import jax.numpy as jnp
import numpy as np

V, N = 3, 3
ALL = np.array(list(itertools.product(range(V), repeat=N)))  # [27, 3]
JOINT = np.random.default_rng(0).dirichlet(np.full(len(ALL), 0.5))  # of the data
STATES = np.array(list(itertools.product(range(V + 1), repeat=N)))  # [64, 3], value V = hidden
START = len(STATES) - 1  # all hidden


def number(states):
    """Rows of values as numbers of states."""
    return states @ (V + 1) ** np.arange(N - 1, -1, -1)


def conditionals(joint=JOINT):
    """f64[64, N, V]: p(token i | what is not hidden) in every state; uniform for tokens that are not hidden."""
    table = np.full((len(STATES), N, V), 1 / V)
    for s, state in enumerate(STATES):
        weight = joint * ((state == V) | (ALL == state)).all(1)
        for i in np.flatnonzero(state == V):
            mass = np.array([weight[ALL[:, i] == v].sum() for v in range(V)])
            table[s, i] = mass / mass.sum() if mass.sum() > 0 else 1 / V
    return table


def network(table):
    """`logits_fn` of a table of conditionals."""
    logits = jnp.log(jnp.asarray(table, jnp.float32))

    def logits_fn(ids, hidden, level):
        state = jnp.where(hidden, V, ids) @ jnp.array((V + 1) ** np.arange(N - 1, -1, -1))
        return logits[state]

    return logits_fn


def law(table, steps, transition):
    """f64[27]: distribution of what a chain of steps from all hidden ends in.

    transition(i, state) gives for each token a dict of {value: chance}, independent of one another.
    """
    p = np.zeros(len(STATES))
    p[START] = 1
    for i in range(steps):
        after = np.zeros_like(p)
        for s in np.flatnonzero(p):
            choices = transition(i, s, table)
            for values in itertools.product(*(c.items() for c in choices)):
                after[number(np.array([v for v, _ in values]))] += p[s] * np.prod([c for _, c in values])
        p = after
    assert abs(p[number(ALL)].sum() - 1) < 1e-9
    return p[number(ALL)]
