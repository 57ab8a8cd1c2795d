"""Tensors that are not plain: torch's own step takes those parameters, and `fallbacks` says which and why."""

import warnings

import pytest

from .harness import (
    NAMES,
    OURS,
    SOME_STATE,
    THEIRS,
    Config,
    Twins,
    assert_close,
    assert_matches,
    every_class,
    forloop,
    gt,
    leaves,
    normal,
    outcome,
    parameters,
    simple,
    stateful,
    torch,
)

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


def fallen(opt) -> list[int]:
    """The places of the parameters that torch's code steps."""
    assert all(fallback.reason and isinstance(fallback, gt.Fallback) for fallback in opt.fallbacks())
    held = {id(fallback.parameter) for fallback in opt.fallbacks()}
    return [i for i, p in enumerate(parameters(opt)) if id(p) in held]


def both(name, run):
    """The outcomes of ours and of torch's class."""
    options = SOME_STATE.get(name, {})
    return (
        outcome(lambda: run(lambda p, **more: OURS[name](p, **{**options, **more}))),
        outcome(lambda: run(lambda p, **more: THEIRS[name](p, **{**options, **forloop(name), **more}))),
    )


def assert_alike(ours, theirs, limit=1e-10):
    """The same error, or optimizers in the same state."""
    assert ours[0] == theirs[0], (ours, theirs)
    if ours[0] == "raised":
        assert ours == theirs
    else:
        assert_matches(ours[1], theirs[1], limit)


@stateful
def test_plain_tensors_need_no_fallback(config):
    twins = Twins(config)
    twins.step(2)
    assert twins.ours.fallbacks() == []


# Sparse gradients


def embedding(make, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Embedding(7, 3, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    opt = make([net.weight, dense], **options)
    for step in range(4):
        opt.zero_grad()
        (net(torch.tensor([step, 2, step + 1, 2])) * dense).square().sum().backward()
        assert net.weight.grad.is_sparse
        opt.step()
    return opt


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients(name, momentum):
    """SGD and Adagrad take them; the others raise torch's error. The dense parameter needs no fallback."""
    options = {"momentum": 0.9 if momentum else 0.0} if "momentum" in THEIRS[name]([normal(1)]).defaults else {}
    if momentum and not options:
        pytest.skip("has no momentum")
    ours, theirs = both(name, lambda make: embedding(make, **options))
    assert_alike(ours, theirs, 1e-5)
    assert (ours[0] == "returned") == (name in ("SGD", "Adagrad"))
    if ours[0] == "returned":
        assert fallen(ours[1]) == [0]
        assert "sparse" in ours[1].fallbacks()[0].reason


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_and_dense_gradients_in_alternation(name):
    """The states are shared by both ways."""

    def run(make):
        (p,) = leaves([normal((6, 3))])
        opt = make([p], **({"momentum": 0.0} if name == "SGD" else {}))
        for step in range(6):
            g = normal((6, 3), seed=step) * (normal((6, 1), seed=step) > 0)
            p.grad = None  # its layout cannot change in place
            p.grad = g.to_sparse(1) if step % 2 else g
            opt.step()
        return opt

    assert_alike(*both(name, run))


def look(opt):
    """What a user may do before the first step, with the gradients there."""
    if isinstance(opt, OURS["SGD"]):
        opt.fallbacks()


def look_and_add(opt):
    look(opt)
    opt.add_param_group({"params": leaves([normal((2,))])})


def look_and_replace(opt):
    look(opt)
    opt.__setstate__({"param_groups": [dict(group) for group in opt.param_groups]})


FIRST = {
    "sparse": (lambda g: g.to_sparse(1), lambda _: None),
    "negated": (lambda g: torch._neg_view(-g), lambda _: None),
    "looked at before": (torch.clone, look),
    "looked at, group added": (torch.clone, look_and_add),
    "looked at, groups replaced": (torch.clone, look_and_replace),
}


@pytest.mark.parametrize("kind", FIRST)
def test_first_gradient(kind):
    """The first gradient becomes SGD's momentum undampened, whoever takes that step."""
    transform, before = FIRST[kind]
    twins = Twins(Config("SGD", {"momentum": 0.9, "dampening": 0.5}), lambda: [normal((4, 3)), normal((4, 3), seed=1)])
    for opt in twins:
        params = parameters(opt)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = None
                p.grad = transform(normal((4, 3), seed=10 * step + i))
            if step == 0:
                before(opt)
            opt.step()
    twins.check()


# Complex numbers


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@stateful
def test_complex(config, dtype):
    twins = Twins(config, lambda: [*simple(dtype), normal((4,), torch.float64)])
    twins.step(5)
    twins.check()
    assert fallen(twins.ours) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_conjugated_gradients(name):
    """Of complex parameters: most of torch's classes have an error for them."""

    def run(make):
        opt = make(leaves([normal((5,), torch.complex128)]))
        for step in range(3):
            parameters(opt)[0].grad = normal((5,), torch.complex128, step).conj()
            opt.step()
        return opt

    assert_alike(*both(name, run))


@stateful
def test_negated_gradients(config):
    """Imaginary parts of conjugates, whose memory has the opposite sign."""
    twins = Twins(config, lambda: [normal((5,)), normal((4,), seed=2)])
    for step in range(4):
        for opt in twins:
            p, q = parameters(opt)
            p.grad = normal((5,), torch.complex128, step).conj().imag
            q.grad = torch._neg_view(normal((4,), seed=step))
            assert p.grad.is_neg()
            assert q.grad.is_neg()
            opt.step()
    twins.check()


@stateful
def test_views_of_complex_tensors(config):
    """view_as_real, .real and .imag are plain strided tensors."""

    def make():
        z = [normal((5,), torch.complex128, seed) for seed in range(3)]
        return [torch.view_as_real(z[0]), z[1].real, z[2].imag]

    twins = Twins(config, make)
    twins.step(4)
    twins.check()


@stateful
def test_negated_parameters(config):
    """Whose memory has the opposite sign."""
    twins = Twins(config, lambda: [torch._neg_view(normal((5,))), normal((3,))])
    assert all(parameters(opt)[0].is_neg() for opt in twins)
    twins.step(3)
    twins.check()


# Memory


@stateful
def test_expanded_gradients(config):
    """As those of a sum are."""
    twins = Twins(config, lambda: [normal((4, 6)), normal((5,)), normal((2, 3))])
    for _ in range(4):
        for opt in twins:
            opt.zero_grad()
            p, q, r = parameters(opt)
            (p.sum() + q.mean()).backward()
            r.grad = normal((2, 1)).expand(2, 3)
            assert p.grad.is_contiguous() or 0 in p.grad.stride()
            p.grad = torch.ones((), dtype=p.dtype).expand(4, 6)
            opt.step()
    twins.check()


OVERLAPPING = {
    "expanded": lambda: normal((4, 1)).expand(4, 3),
    "expanded scalar": lambda: normal(()).expand(5),
    "windows": lambda: torch.as_strided(normal((9,)), (4, 3), (1, 1)),
}


@pytest.mark.parametrize("kind", OVERLAPPING)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_overlap_themselves(name, kind):
    """What torch refuses is refused with its error."""

    def run(make):
        opt = make(leaves([OVERLAPPING[kind](), normal((3,))]))
        for _ in range(2):
            for i, p in enumerate(parameters(opt)):
                p.grad = normal(p.shape, seed=10 + i)
            opt.step()
        return opt

    assert_alike(*both(name, run))


@stateful
def test_gradients_that_are_the_parameters_memory(config):
    """p.grad = p.data: torch's result, or refused with nothing changed."""
    twins = Twins(config, lambda: [normal((5,)), normal((3,), seed=1)])
    twins.step(2)
    results = []
    for opt in twins:
        p = parameters(opt)[0]
        before = p.detach().clone()
        p.grad = p.data
        results.append(outcome(opt.step)[0])
        if results[-1] == "raised":
            assert opt is twins.ours
            assert torch.equal(p.detach(), before)
            return
    twins.check()


@stateful
def test_gradients_that_share_memory(config):
    """One gradient for two parameters; two parts of one buffer; another parameter's data."""
    twins = Twins(config, lambda: [normal((5,)), normal((5,), seed=1), normal((5,), seed=2), normal((5,), seed=3)])
    for step in range(3):
        for opt in twins:
            shared = normal((12,), seed=step)
            p = parameters(opt)
            p[0].grad = p[1].grad = shared[:5]
            p[2].grad, p[3].grad = shared[3:8], shared[7:12]
            opt.step()
    twins.check()


@stateful
def test_views_of_one_buffer(config):
    """Flat parameters, as wrappers have them; the buffer changes, and what lies between stays."""
    buffers = []

    def make():
        buffers.append(normal((20,)))
        return [buffers[-1][2:6], buffers[-1][8:14].view(2, 3), buffers[-1][15]]

    twins = Twins(config, make)
    twins.step(3)
    twins.check()
    assert_close(*buffers, twins.limit)
    start = normal((20,))
    for i in (0, 1, 6, 7, 14, 16, 19):
        assert buffers[0][i] == start[i]


@stateful
def test_parameters_that_share_memory(config):
    """Two parameters of one buffer that overlap: torch steps one after the other."""

    def make():
        buffer = normal((8,))
        return [buffer[:5], buffer[3:]]

    twins = Twins(config, make)
    results = []
    for opt in twins:
        twins.grads(opt)
        results.append(outcome(opt.step)[0])
    if results[0] == "returned":
        twins.check()
    else:
        assert results == ["raised", "returned"]


@every_class
def test_duplicates(config):
    """torch warns, and steps the parameter as often as it is there."""
    opts = []
    for make in (config.ours, config.theirs):
        p, q = leaves([normal((5,)), normal((3,))])
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opts.append(make([p, q, p]))
        for step in range(3):
            p.grad, q.grad = normal((5,), seed=step), normal((3,), seed=step)
            opts[-1].step()
    for p, q in zip(*map(parameters, opts), strict=True):
        assert_close(p, q, 1e-9)


@every_class
def test_tied_parameters(config):
    """Of two layers: one parameter, whose gradient is the sum."""

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
            self.out.weight = self.embed.weight

    opts = []
    for make in (config.ours, config.theirs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Tied().double()
        opts.append(make(net.parameters()))
        assert len(parameters(opts[-1])) == 1
        for step in range(4):
            opts[-1].zero_grad()
            net.out(net.embed(torch.tensor([step, 1, 5]))).square().sum().backward()
            opts[-1].step()
    assert_matches(*opts, 1e-9)


@stateful
def test_shared_memory(config):
    """Tensors of share_memory_(), as Hogwild training has them."""
    twins = Twins(config, lambda: [p.share_memory_() for p in simple()])
    twins.step(2)
    for opt in twins:
        for state in opt.state.values():
            for value in state.values():
                value.share_memory_()
    twins.step(3)
    twins.check()
    assert all(p.is_shared() for p in parameters(twins.ours))


def test_adagrad_shares_its_states():
    """torch's method of that class."""
    twins = Twins(Config("Adagrad"))
    for opt in twins:
        opt.share_memory()
    twins.step(3)
    twins.check()
    assert all(state["sum"].is_shared() for state in twins.ours.state.values())


@stateful
def test_memory_of_numpy(config):
    """torch.from_numpy, with odd strides and negative ones excluded by torch itself."""
    np = pytest.importorskip("numpy")
    twins = Twins(config, lambda: [torch.from_numpy(np.arange(24.0).reshape(4, 6)[:, 1::2])])
    twins.step(3)
    twins.check()


# Subclasses and devices


class Recorded(torch.Tensor):
    """A subclass whose operations are seen."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Named(torch.nn.Parameter):
    """A subclass of Parameter."""


@pytest.mark.parametrize("cls", [Recorded, Named])
@stateful
def test_subclasses(config, cls):
    """torch's step, so that the subclass sees its operations."""

    def make():
        plain = normal((5,))
        return [plain.as_subclass(Recorded) if cls is Recorded else Named(plain), normal((3,), seed=1)]

    opts = []
    for build in (config.ours, config.theirs):
        p = make()
        p = [q.requires_grad_() for q in p]
        opts.append(build(p))
        Recorded.seen.clear()
        for step in range(3):
            for i, q in enumerate(p):
                q.grad = normal(q.shape, seed=10 * step + i)
            opts[-1].step()
        if cls is Recorded:
            assert torch.Tensor.add_ in Recorded.seen or torch.Tensor.addcdiv_ in Recorded.seen
    assert type(parameters(opts[0])[0]) is cls
    for p, q in zip(*map(parameters, opts), strict=True):
        assert_close(p.as_subclass(torch.Tensor), q.as_subclass(torch.Tensor), 1e-10)
    if cls is Recorded:
        assert fallen(opts[0]) == [0]


def test_buffers_and_plain_tensors():
    """Tensors that are no Parameter are as good."""
    twins = Twins(Config("Adam"), lambda: [torch.nn.Buffer(normal((4,))), normal((3,))])
    twins.step(3)
    twins.check()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_memory(name):
    """On the meta device torch's steps have no effect; lazy modules have parameters without a shape."""

    def meta(make):
        p = torch.zeros(3, device="meta", requires_grad=True)
        q = normal((2,)).requires_grad_()
        opt = make([p, q])
        for _ in range(2):
            p.grad, q.grad = torch.zeros(3, device="meta"), normal((2,))
            opt.step()
        return opt

    ours, theirs = both(name, meta)
    assert ours[0] == theirs[0], (ours, theirs)
    if ours[0] == "returned":
        assert fallen(ours[1]) == [0]
        assert_close(parameters(ours[1])[1], parameters(theirs[1])[1], 1e-9)

    def lazy(make):
        net = torch.nn.LazyLinear(3)
        opt = make(net.parameters())
        net(torch.ones(2, 4)).sum().backward()
        opt.step()
        return len(parameters(opt)), [tuple(p.shape) for p in parameters(opt)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = both(name, lazy)
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_types_that_no_optimizer_knows(name):
    """Integers cannot require gradients; 8-bit floats have no arithmetic: torch's error, or its result."""

    def run(make):
        p = torch.zeros(3, dtype=torch.float8_e4m3fn)
        opt = make([p])
        p.grad = torch.zeros(3, dtype=torch.float8_e4m3fn)
        opt.step()

    ours, theirs = both(name, run)
    assert ours[:2] == theirs[:2]


@stateful
def test_mixed_kinds_in_one_group(config):
    """Plain, complex, negated and overlapping parameters in any order: the plain ones are ours."""
    kinds = [normal((3,)), normal((4,), torch.complex128), normal((2, 2)), torch._neg_view(normal((3,)))]
    twins = Twins(config, lambda: [kind.clone() if i < 3 else torch._neg_view(-kind) for i, kind in enumerate(kinds)])
    for step in range(4):
        twins.step(skip=lambda i, step=step: (i + step) % 4 == 0)
    twins.check()
    assert 0 not in fallen(twins.ours)
    assert 2 not in fallen(twins.ours)
    assert 1 in fallen(twins.ours)


@pytest.mark.parametrize("flag", ["differentiable", "capturable"])
def test_flags_that_are_torchs(flag):
    """All parameters of a group with the flag are torch's; other groups are not."""
    p = leaves(simple())
    opt = OURS["Adam"]([{"params": p[:2], flag: True}, {"params": p[2:]}])
    for i, q in enumerate(p):
        q.grad = None if flag == "capturable" and i < 2 else normal(q.shape, seed=i)
    with torch.no_grad():
        opt.step()
    assert set(fallen(opt)) <= {0, 1}
    assert fallen(opt) == [0, 1] or flag == "capturable"


def test_names_in_fallbacks():
    """The parameter's name, if it has one."""
    z, p = leaves([normal((3,), torch.complex64), normal((2,))])
    opt = OURS["Adam"]([("spectrum", z), ("bias", p)])
    for q in (z, p):
        q.grad = torch.ones_like(q)
    opt.step()
    (fallback,) = opt.fallbacks()
    assert fallback.parameter is z
    assert fallback.name == "spectrum"
    assert "complex" in fallback.reason


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wide", [False, True], ids=["gradients narrow", "gradients wide"])
def test_gradients_of_another_type(name, wide):
    """grad_dtype allows them. Where torch's step takes them, ours has its result."""
    narrow, other = torch.bfloat16, torch.float32

    def run(make):
        p = normal((6,), narrow if wide else other).requires_grad_()
        p.grad_dtype = other if wide else narrow
        opt = make([p])
        for step in range(2):
            p.grad = normal((6,), p.grad_dtype, step)
            opt.step()
        return opt

    ours, theirs = both(name, run)
    if theirs[0] == "returned":
        assert ours[0] == "returned", ours
        assert_close(parameters(ours[1])[0], parameters(theirs[1])[0], 0.03 if wide else 1e-5)
