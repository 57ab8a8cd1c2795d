"""The tables of docs/minimize.md: ``python -m tests.minimize_table`` computes and prints them.

Each method on each classic function, with its defaults and with other settings; and the methods of SciPy and gradstep
on a function with noise.
"""

import warnings
from functools import cache
from itertools import product

import numpy as np

import gradstep as gs
from gradstep import optimizers
from gradstep._functions import FUNCTIONS
from gradstep.schedules import cosine

METHODS = [cls.__name__ for cls in optimizers.ALL]

# ---- classic functions ----------------------------------------------------------------------------------------------

NEAR = 1e-3  # a minimum is found where no coordinate of the result is farther from it
PROBLEMS = dict.fromkeys(FUNCTIONS, 2) | {"rosenbrock, n = 10": 10, "rosenbrock, n = 100": 100}
"""The problems with their numbers of dimensions."""
SETTINGS = {
    ("SGD", "rosenbrock"): {"lr": 0.002, "maxiter": 20_000},
    ("SGD", "beale"): {"lr": 0.02},
    ("SGD", "saddle"): {"lr": 0.02},
    ("SGD", "rosenbrock, n = 10"): {"lr": 0.001, "maxiter": 25_000},
    ("AdaGrad", "rosenbrock, n = 10"): {"lr": 0.7, "maxiter": 20_000},
    ("RMSProp", "rosenbrock, n = 100"): {"lr": cosine(0.003, 20_000), "maxiter": 20_000},
    ("AdaDelta", "rosenbrock"): {"lr": cosine(0.3, 20_000), "maxiter": 20_000},
}
"""Options with which a method finds a minimum that it does not find with its defaults."""
LOCAL = ("rastrigin", "ackley")  # a local minimum is near the start
NOT_FOUND = {*product(METHODS, LOCAL)} | {
    ("SGD", "rosenbrock, n = 100"),
    ("AdaGrad", "rosenbrock, n = 100"),
    ("AdaDelta", "rosenbrock, n = 10"),
    ("AdaDelta", "rosenbrock, n = 100"),
}
"""What is not found with the defaults, and for which no settings are given."""


def problem(name):
    """The function, the start, and the global minima."""
    function = FUNCTIONS[name.partition(",")[0]]
    repeats = PROBLEMS[name] // 2
    return function, np.tile(function.start, repeats), np.tile(function.minima, repeats)


def run(method, name, options):
    """Whether a minimum is found, and the result."""
    function, start, minima = problem(name)
    with np.errstate(all="ignore"):
        result = gs.minimize(function.value, start, method=method, jac=function.gradient, options=options)
    return bool(np.abs(minima - result.x).max(axis=1).min() < NEAR), result


@cache
def outcome(method, name):
    """Whether the defaults find a minimum, and the result."""
    return run(method, name, {})


def entry(found, result):
    """The evaluations; in brackets, where another point was the end; or a dash at the limit of iterations."""
    return str(result.nfev) if found else f"({result.nfev})" if result.success else "-"


def words(options):
    """Options as in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def classic():
    """The functions and all methods with their defaults."""
    yield ("function", *(f"`{method}`" for method in METHODS))
    for name in PROBLEMS:
        yield (name, *(entry(*outcome(method, name)) for method in METHODS))


def settings():
    """What is found with other settings."""
    yield ("method", "function", "options", "evaluations")
    for (method, name), options in SETTINGS.items():
        yield (f"`{method}`", name, f"`{words(options)}`", entry(*run(method, name, options)))


# ---- a function with noise ------------------------------------------------------------------------------------------

STEPS, SEEDS = 3000, 3
RATES = {"SGD": 0.3, "Momentum": 0.03, "NAG": 0.03, "AdaGrad": 0.3, "AdaDelta": 1.0}  # of the others 0.03
BESIDE = ("L-BFGS-B", "BFGS", "CG", "Nelder-Mead")


def logistic():
    """The loss, with its gradient, of logistic regression on made-up data: of all rows, or of some."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((2000, 20)) * np.geomspace(0.3, 3, 20), rng.standard_normal(20)
    y = np.where(rng.random(2000) < 1 / (1 + np.exp(-x @ weights)), 1.0, -1.0)

    def loss(w, rows=slice(None)):
        margins = y[rows] * (x[rows] @ w)
        slopes = -y[rows] / (1 + np.exp(margins))
        return np.logaddexp(0, -margins).mean() + 0.005 * w @ w, x[rows].T @ slopes / len(slopes) + 0.01 * w

    return loss


def noisy(loss, seed):
    """The loss of 32 other rows at each call."""
    rng = np.random.default_rng(seed)
    return lambda w: loss(w, rng.integers(2000, size=32))


@cache
def noisy_outcome(method):
    """The median of the loss of all rows above its minimum, the evaluations and the message of one run."""
    from scipy.optimize import minimize

    loss, start = logistic(), np.zeros(20)
    least = minimize(loss, start, jac=True, options={"gtol": 1e-9}).fun
    ours = method in METHODS
    options = {} if ours else {"maxfev" if method == "Nelder-Mead" else "maxiter": STEPS}
    if ours:
        given = {"lr": cosine(RATES.get(method, 0.03), STEPS), "maxiter": STEPS, "gtol": 0.0, "select": "last"}
        given |= {"eps": 1e-3} if method == "AdaDelta" else {}
        method = getattr(gs.scipy, method.lower())(**given)
    results = []
    for seed in range(SEEDS):
        fun = noisy(loss, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if method == "Nelder-Mead":
                results.append(minimize(lambda w, fun=fun: fun(w)[0], start, method=method, options=options))
            else:
                results.append(minimize(fun, start, jac=True, method=method, options=options))
    excess = sorted(float(loss(result.x)[0] - least) for result in results)
    return excess[SEEDS // 2], results[0].nfev, results[0].message


def beside():
    """The methods of SciPy and of gradstep on a function with noise."""
    yield ("method", "loss above the minimum", "evaluations", "why it stopped")
    for method in (*BESIDE, *METHODS):
        excess, evaluations, message = noisy_outcome(method)
        yield (f"`{method}`", f"{excess:.4f}", str(evaluations), message)


# ---- pages ----------------------------------------------------------------------------------------------------------


def rows(page, header):
    """The rows of the table of a page that has this header, as tuples."""
    lines = page.splitlines()
    first = lines.index(line(header))
    found = []
    for text in lines[first + 2 :]:
        if not text.startswith("|"):
            return found
        found.append(tuple(part.strip() for part in text.strip("|").split("|")))
    return found


def line(row):
    """A row in Markdown."""
    return f"| {' | '.join(text.strip() for text in row)} |"


def main():
    for table in (classic(), settings(), beside()):
        header, *body = table
        print(line(header), line(["---"] * len(header)), *map(line, body), "", sep="\n")


if __name__ == "__main__":
    main()
