"""States: what users do to them, and their way into and out of checkpoints, torch's among them."""

import copy
import io
import pickle

import pytest

from .harness import (
    CAPTURABLE,
    NAMES,
    OURS,
    SOME_STATE,
    THEIRS,
    Config,
    TwinModels,
    Twins,
    assert_close,
    assert_matches,
    assert_same,
    assert_same_states,
    every_class,
    leaves,
    normal,
    outcome,
    parameters,
    simple,
    stateful,
    torch,
)


def through_a_file(state, weights_only=True):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


WAYS = {
    "deepcopy": copy.deepcopy,
    "file": through_a_file,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


def successor(make, opt, state):
    """Another optimizer with a copy of the parameters, after loading the state."""
    new = make(leaves(p.detach().clone() for p in parameters(opt)))
    new.load_state_dict(state)
    return new


@stateful
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("direction", ["from torch", "to torch", "to ours"])
def test_interchange(config, direction, dtype, way):
    """Loaded states have the bits of those that were saved, and training goes on as without an interruption."""
    twins = Twins(config, lambda: simple(dtype))
    twins.step(4, skip=lambda i: i == 3)
    source, make = (
        (twins.theirs if direction == "from torch" else twins.ours),
        (config.theirs if direction == "to torch" else config.ours),
    )
    loaded = successor(make, source, WAYS[way](source.state_dict()))
    expected = successor(config.theirs, source, copy.deepcopy(source.state_dict()))
    assert_same_states(loaded, expected)
    if dtype.itemsize == 2:
        return  # torch's own steps round after each operation
    for opt in (loaded, expected):
        steps = twins.steps
        for _ in range(3):
            twins.grads(opt)
            opt.step()
            twins.steps += 1
        twins.steps = steps
    assert_matches(loaded, expected, twins.limit)


@stateful
def test_the_same_bits_as_without_a_checkpoint(config):
    """Ours from ours: no rounding at all."""
    opt, other = (config.ours(leaves(simple())) for _ in range(2))
    for step in range(8):
        if step == 4:
            other = successor(config.ours, other, through_a_file(other.state_dict()))
        for o in (opt, other):
            for i, p in enumerate(parameters(o)):
                p.grad = normal(p.shape, p.dtype, 10 * step + i)
            o.step()
    for p, q in zip(parameters(opt), parameters(other), strict=True):
        assert_same(p, q)
        for key in opt.state[p].keys() - {"mu_product"}:
            assert_same(opt.state[p][key], other.state[q][key], key)


@stateful
def test_back_and_forth(config):
    """The optimizer changes sides every other step."""
    twins = Twins(config)
    opt, make = config.ours(leaves(simple())), [config.theirs, config.ours]
    for step in range(8):
        if step % 2:
            opt = successor(make[step // 2 % 2], opt, opt.state_dict())
        twins.grads(opt)
        opt.step()
        twins.step()
    assert_matches(opt, twins.theirs, max(twins.limit, 1e-7 if config.name == "NAdam" else 0))


@stateful
def test_state_dict_is_live(config):
    """As torch's, it has the tensors themselves, which later steps change; a deep copy stays."""
    twins = Twins(config)
    twins.step()
    held = [opt.state_dict() for opt in twins]
    kept = [copy.deepcopy(state) for state in held]
    twins.step(2)
    for mine, other in zip(held, kept, strict=True):
        for i, state in mine["state"].items():
            assert [v is not None and torch.equal(v, other["state"][i][k]) for k, v in state.items()] == [
                v is not None and torch.equal(v, kept[1]["state"][i][k]) for k, v in held[1]["state"][i].items()
            ]


@stateful
def test_values_that_steps_read(config):
    """Users change states in place, and step counts with them."""
    twins = Twins(config)
    twins.step(2)
    for opt in twins:
        for i, p in enumerate(parameters(opt)):
            for key, value in opt.state[p].items():
                if key == "step":
                    value.fill_(10 + i)
                elif key != "mu_product":
                    value.abs_().add_(0.5)
    twins.step(3)
    twins.check()


@stateful
@pytest.mark.parametrize("place", ["contiguous", "transposed", "view"])
def test_states_replaced(config, place):
    """By other tensors of the same shape, between steps; the old ones are not written any more."""
    twins = Twins(config, lambda: [normal((4, 6)), normal((3, 3), seed=1)])
    twins.step(2)
    held = []
    for opt in twins:
        p = parameters(opt)[0]
        for key, value in opt.state[p].items():
            held.append((value, value.clone()))
            if value.ndim != 2:
                opt.state[p][key] = value.clone() + 5 if key == "step" else value.clone()
            elif place == "view":
                opt.state[p][key] = torch.zeros(6, 8, dtype=value.dtype)[1:5, 1:7].copy_(value)
            else:
                opt.state[p][key] = value.T.contiguous().T if place == "transposed" else value.clone()
            opt.state[p][key].mul_(1 if key in ("step", "mu_product") else 0.5)
    twins.step(3)
    twins.check()
    for value, before in held:
        assert_same(value, before)


@stateful
def test_states_removed(config):
    """The parameter begins anew, as under torch."""
    twins = Twins(config)
    twins.step(3)
    for opt in twins:
        opt.state.pop(parameters(opt)[1], None)
    if config.name == "Adagrad":  # whose states are there from the start
        for opt in twins:
            opt.state[parameters(opt)[1]].update(step=torch.tensor(0.0), sum=torch.zeros(33, dtype=torch.float64))
    twins.step(2)
    twins.check()
    for opt in twins:
        opt.state.clear()
    if config.name != "Adagrad":
        twins.step(2)
        twins.check()


@stateful
def test_a_state_replaced_whole(config):
    """opt.state[p] = {...}, and a new dict for opt.state, as load_state_dict does."""
    twins = Twins(config)
    twins.step(2)
    for opt in twins:
        p = parameters(opt)[0]
        opt.state[p] = {key: value.clone() for key, value in opt.state[p].items()}
    twins.step()
    for opt in twins:
        opt.__setstate__({"state": copy.copy(opt.state), "param_groups": opt.param_groups})
    twins.step()
    twins.check()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "SGD"])
def test_step_counts_of_other_kinds(name):
    """Numbers, as old versions of torch saved them; integers; float64."""
    for convert in (float, int, lambda t: t.double(), lambda t: t.long(), lambda t: t.reshape(1)[0].clone()):
        twins = Twins(Config(name))
        twins.step(2)
        for opt in twins:
            state = copy.deepcopy(opt.state_dict())
            for s in state["state"].values():
                s["step"] = convert(s["step"])
            opt.load_state_dict(state)
        twins.step(2)
        for p, q in zip(*map(parameters, twins), strict=True):
            assert_close(p, q, twins.limit)
            assert float(twins.ours.state[p]["step"]) == float(twins.theirs.state[q]["step"]) == 4


# Parameters replaced


@stateful
def test_new_data(config):
    """p.data = another tensor: the step changes that, and not the old memory."""
    twins = Twins(config)
    twins.step(2)
    old = []
    for opt in twins:
        for i, p in enumerate(parameters(opt)):
            old.append((p.data, p.data.clone()))
            p.data = normal(p.shape, seed=77 + i)
    twins.step(2)
    twins.check()
    for data, before in old:
        assert_same(data, before)


def set_data(tensor):
    tensor.data = tensor.data.clone()


MOVES = {
    "data": set_data,
    "set_": lambda tensor: tensor.set_(tensor.clone()),
    "share_memory_": torch.Tensor.share_memory_,
    "resize_": lambda tensor: tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() + 4096),
}
WHAT = {
    "parameters": lambda opt, _: parameters(opt),
    "states": lambda _, state: [value for key, value in state.items() if key not in ("step", "mu_product")],
    "counts": lambda _, state: [value for key, value in state.items() if key in ("step", "mu_product")],
}


@stateful
@pytest.mark.parametrize("how", MOVES)
@pytest.mark.parametrize("what", WHAT)
def test_memory_moved(config, what, how):
    """The same tensors, whose memory is elsewhere now. Sending tensors to another process moves them, too."""
    if (what, how) == ("states", "resize_"):
        pytest.skip("their storages cannot be resized")
    twins = Twins(config)
    twins.step(2)
    for opt in twins:
        with torch.no_grad():
            for state in opt.state.values():
                for tensor in WHAT[what](opt, state):
                    MOVES[how](tensor)
    reused = [torch.zeros(n) for n in (1, 2, 4, 8, 33, 35) for _ in range(20)]
    twins.step(3)
    twins.check()
    assert not any(tensor.any() for tensor in reused)


NEW_DATA = {
    "another shape": lambda _: normal((3, 2)),
    "fewer elements": lambda data: data.flatten()[:4].clone(),
    "another type": lambda data: data.float(),
    "16 bits": lambda data: data.bfloat16(),
    "transposed": lambda _: normal((5, 4)).T,
    "strided": lambda _: normal((4, 10))[:, ::2],
    "empty": lambda data: data[:0],
}


@stateful
@pytest.mark.parametrize("change", NEW_DATA)
def test_new_data_of_another_kind(config, change):
    """Where torch's step works, ours has its result; where it fails, ours fails too, or does what the type asks for."""
    twins = Twins(config, lambda: [normal((4, 5))])
    twins.step(2)
    results = []
    for opt in twins:
        (p,) = parameters(opt)
        p.grad = None
        p.data = NEW_DATA[change](p.data)
        p.grad = normal(p.shape, p.dtype, 5)
        results.append(outcome(opt.step)[0])
    if results[1] == "returned":
        assert results[0] == "returned"
        limit = 0.02 if change == "16 bits" else max(twins.limit, 1e-6 if change == "another type" else 0)
        assert_close(*(parameters(opt)[0] for opt in twins), limit)
    elif change in ("another shape", "fewer elements", "empty"):
        assert results[0] == "raised"


@every_class
def test_model_moved_within_a_wrapper(config):
    """torch.nn.utils.vector_to_parameters, weights copied in place, parameters that share one flat buffer."""
    twins = TwinModels(config)
    twins.train(2)
    for net, _ in twins:
        flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach() * 0.5
        torch.nn.utils.vector_to_parameters(flat, net.parameters())
    twins.train(2, 2)
    twins.check()


# Copies of optimizers


@stateful
def test_deepcopy(config):
    """Together with its parameters; original and copy go on apart."""
    twins = Twins(config)
    twins.step(2)
    twins.ours, original = copy.deepcopy(twins.ours), twins.ours
    before = [p.detach().clone() for p in parameters(original)]
    twins.step(2)
    twins.check()
    for p, value in zip(parameters(original), before, strict=True):
        assert_same(p.detach(), value)


@stateful
def test_deepcopy_with_the_model(config):
    twins = TwinModels(config)
    twins.train(2)
    net, opt = copy.deepcopy((twins.nets[0], twins.opts[0]))
    assert all(p is q for p, q in zip(net.parameters(), parameters(opt), strict=True))
    twins.nets[0], twins.opts[0] = net, opt
    twins.train(2, 2)
    twins.check()


@stateful
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle(config, protocol):
    twins = Twins(config)
    twins.step(2)
    twins.ours = pickle.loads(pickle.dumps(twins.ours, protocol))
    assert type(twins.ours) is OURS[config.name]
    twins.step(2)
    twins.check()


@stateful
def test_whole_optimizer_in_a_file(config):
    twins = Twins(config)
    twins.step(2)
    twins.ours = through_a_file(twins.ours, weights_only=False)
    twins.step(2)
    twins.check()


# Loading


@stateful
def test_hooks_of_state_dicts(config):
    """In torch's order, with torch's arguments; the results replace the dicts."""

    def record(make):
        opt, seen = make(leaves(simple())), []
        opt.register_state_dict_pre_hook(lambda o: seen.append(("save", o is opt)))
        opt.register_state_dict_post_hook(lambda _o, state: {**state, "mine": 3})
        opt.register_state_dict_post_hook(lambda _o, state: seen.append(("saved", state["mine"])))
        opt.register_load_state_dict_pre_hook(lambda _o, state: {k: v for k, v in state.items() if k != "mine"})
        opt.register_load_state_dict_pre_hook(lambda _o, state: seen.append(("load", "mine" in state)), prepend=True)
        opt.register_load_state_dict_post_hook(lambda o: seen.append(("loaded", len(o.param_groups))))
        opt.load_state_dict(opt.state_dict())
        return seen

    assert record(config.ours) == record(config.theirs) != []


BAD_STATES = {
    "groups": lambda state: state["param_groups"].append(state["param_groups"][0]),
    "length": lambda state: state["param_groups"][0]["params"].pop(),
    "no groups": lambda state: state.pop("param_groups"),
    "no state": lambda state: state.pop("state"),
}


@stateful
@pytest.mark.parametrize("change", BAD_STATES)
def test_states_that_are_refused(config, change):
    """With torch's error; nothing has changed then."""
    twins = Twins(config)
    twins.step(2)
    results = []
    for opt in twins:
        state = copy.deepcopy(opt.state_dict())
        BAD_STATES[change](state)
        results.append(outcome(lambda o=opt, s=state: o.load_state_dict(s)))
    assert results[0] == results[1]
    assert results[0][0] == "raised"
    twins.step()
    twins.check()


@stateful
def test_options_are_loaded(config):
    """Those of the groups, with keys that users have added."""
    twins = Twins(config)
    twins.step()
    for opt in twins:
        opt.param_groups[0].update(lr=0.5, mine="kept")
    other = [make(leaves(simple())) for make in (config.ours, config.theirs)]
    for opt, new in zip(twins, other, strict=True):
        new.load_state_dict(opt.state_dict())
        assert new.param_groups[0]["lr"] == 0.5
        assert new.param_groups[0]["mine"] == "kept"


@every_class
def test_states_of_parameters_unknown(config):
    """Entries for no parameter are kept as they are, as torch keeps them."""
    twins = Twins(config)
    for opt in twins:
        state = opt.state_dict()
        state["state"][99] = {"step": torch.tensor(3.0), "other": "text"}
        opt.load_state_dict(state)
        assert opt.state[99]["other"] == "text"
    twins.step(2)
    for p, q in zip(*map(parameters, twins), strict=True):
        assert_close(p, q, twins.limit)


@stateful
def test_other_entries_in_states(config):
    """That users or wrappers put there stay, and are saved."""
    twins = Twins(config)
    twins.step()
    for opt in twins:
        opt.state[parameters(opt)[0]]["mine"] = torch.ones(3)
    twins.step(2)
    saved = through_a_file(twins.ours.state_dict())
    assert torch.equal(saved["state"][0]["mine"], torch.ones(3))
    twins.check()


@stateful
def test_options_of_groups_turned_on(config):
    """Options that need a state which is not there yet behave as torch's: momentum from now on, or torch's error."""
    turned_on = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}, "Adam": {"amsgrad": True}}
    options = turned_on.get(config.name)
    if options is None:
        pytest.skip("has no such option")
    for first in (True, False):
        twins = Twins(Config(config.name, {} if first else options))
        twins.step(2)
        results = []
        for opt in twins:
            opt.param_groups[0].update(options if first else dict.fromkeys(options, 0))
            twins.grads(opt)
            results.append(outcome(opt.step))
        assert results[0][0] == "returned" or results[0] == results[1]
        if results[1][0] == "returned":
            twins.check()
        elif results[0][0] == "returned":  # torch has no such state, ours begins with a new one
            assert all(value.isfinite().all() for p in parameters(twins.ours) for value in twins.ours.state[p].values())


@pytest.mark.parametrize("name", CAPTURABLE)
def test_torch_checkpoint_of_a_capturable_optimizer(name):
    """Its step counts are saved with the flag, which a CPU has no use for."""
    twins = Twins(Config(name))
    twins.step(2)
    state = copy.deepcopy(twins.theirs.state_dict())
    state["param_groups"][0]["capturable"] = True
    for opt in twins:
        opt.load_state_dict(copy.deepcopy(state))
        opt.param_groups[0]["capturable"] = False
    for p, q in zip(*map(parameters, twins), strict=True):
        p.data.copy_(q.data)
    twins.step(2)
    twins.check()


@pytest.mark.parametrize("name", NAMES)
def test_subclasses_of_our_classes(name):
    """Defined by users, with a step of their own around ours."""

    class Mine(OURS[name]):
        def step(self, closure=None):
            self.count = getattr(self, "count", 0) + 1
            return super().step(closure)

    class Theirs(THEIRS[name]):
        pass

    options = SOME_STATE.get(name, {})
    ours, theirs = Mine(leaves(simple()), **options), Theirs(leaves(simple()), **options)
    for step in range(3):
        for opt in (ours, theirs):
            for i, p in enumerate(parameters(opt)):
                p.grad = normal(p.shape, p.dtype, 10 * step + i)
            opt.step()
    assert ours.count == 3
    assert_matches(ours, theirs, 1e-10)
    other = copy.deepcopy(ours)
    assert type(other) is Mine
    assert other.count == 3 if hasattr(copy.deepcopy(theirs), "count") else True
