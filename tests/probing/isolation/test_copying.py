import functools
import io
import random
import statistics
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_probes.probing.isolation.copying import COPY, DATA, LONG, Copier, refuse
from lightning_probes.probing.isolation.depth import CopyError
from lightning_probes.probing.isolation.snapshot import Snapshot

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Meter:
    values: list = field(default_factory=list)


class OtherMeter(Meter):
    pass


@dataclass(slots=True)
class SlottedMeter:
    values: list
    count: int = 0


class Frozen(OrderedDict):  # as the outputs of transformers models are
    def update(self, *_):
        raise RuntimeError("no")

    def clear(self):
        raise RuntimeError("no")


class TestCopies:
    @pytest.mark.parametrize(
        "original",
        [
            [torch.ones(2)],
            {"a": [1, 2]},
            {1, 2},
            deque([torch.ones(2)], maxlen=3),
            defaultdict(list, {"a": [1]}),
            OrderedDict(b=[1], a=[2]),
            Counter("aab"),
            Meter([1, 2]),
            SlottedMeter([1, 2]),
            bytearray(b"ab"),
            np.arange(3),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_mutable_things_are_copied_with_their_type_and_content(self, original):
        copied = Copier()(original)
        assert copied is not original
        assert type(copied) is type(original)
        assert repr(copied) == repr(original)

    def test_what_is_inside_is_copied_too(self):
        original = ({"a": [torch.ones(2)]}, Point([1], 2))
        copied = Copier()(original)
        copied[0]["a"][0].zero_()
        copied[1].x.append(3)
        assert torch.equal(original[0]["a"][0], torch.ones(2))
        assert original[1] == Point([1], 2)
        assert type(copied[1]) is Point

    def test_one_object_in_two_places_stays_one_and_cycles_end(self):
        shared: list = [1]
        shared.append(shared)
        copied = Copier()({"a": shared, "b": shared})
        assert copied["a"] is copied["b"] is copied["a"][1]

    def test_deque_and_defaultdict_keep_how_they_work(self):
        copied = Copier()({"deque": deque([1, 2], maxlen=2), "default": defaultdict(list)})
        copied["deque"].append(3)
        assert list(copied["deque"]) == [2, 3]
        assert copied["default"]["new"] == []

    def test_a_container_of_plain_values_is_still_a_copy(self):
        original = [1, "a", None]
        copied = Copier()(original)
        copied.append(2)
        assert original == [1, "a", None]

    def test_a_very_long_container_is_copied_and_its_items_are_shared(self):
        original = [[i] for i in range(LONG + 1)]
        copied = Copier()(original)
        assert copied is not original
        assert copied[0] is original[0]

    def test_tensor_inside_a_graph_is_detached(self):
        weight = torch.ones(2, requires_grad=True)
        copied = Copier()([weight, weight * 2])
        assert copied[0].requires_grad
        assert copied[1].is_leaf
        assert not copied[1].requires_grad

    @pytest.mark.parametrize(
        ("generator", "draw"),
        [
            (torch.Generator().manual_seed(3), lambda g: float(torch.rand(1, generator=g))),
            (np.random.default_rng(3), lambda g: g.random()),
            (np.random.RandomState(3), lambda g: g.rand()),
            (random.Random(3), lambda g: g.random()),
        ],
        ids=["torch", "numpy", "numpy-legacy", "python"],
    )
    def test_generator_goes_on_from_the_same_state_on_its_own(self, generator, draw):
        copied = Copier()(generator)
        ahead = [draw(copied) for _ in range(3)]
        assert [draw(generator) for _ in range(3)] == ahead


class TestCode:
    def test_bound_method_is_bound_to_the_copy(self):
        meter = Meter()
        copied_meter, copied_append = Copier()((meter, meter.values.append))
        copied_append(1)
        assert copied_meter.values == [1]
        assert meter.values == []

    @pytest.mark.parametrize("wrap", [functools.partial, functools.lru_cache, lambda method: lambda: method()])
    def test_wrapped_method_reaches_the_copy(self, wrap):
        class Counting:
            def __init__(self):
                self.count = 0
                self.wrapped = wrap(self.step)

            def step(self):
                self.count += 1

        original = Counting()
        copied = Copier()(original)
        copied.wrapped()
        assert (original.count, copied.count) == (0, 1)

    def test_closure_keeps_to_its_own_variables(self):
        def counter():
            count, seen = 0, []

            def step(by=1, *, note="x"):
                nonlocal count
                count += by
                seen.append(note)
                return count, seen

            return step

        original = counter()
        copied = Copier()(original)
        assert [copied()[0], copied(by=2)[0]] == [1, 3]
        assert original() == (1, ["x"])

    def test_recursive_closure_calls_itself_and_not_the_original(self):
        calls = []

        def down(n):
            calls.append(n)
            return n and down(n - 1)

        copied_calls, copied_down = Copier()((calls, down))
        copied_down(2)
        assert (calls, copied_calls) == ([], [2, 1, 0])

    def test_default_argument_is_copied(self):
        def collect(item, into=[]):  # noqa: B006
            into.append(item)
            return into

        Copier()(collect)(1)
        assert collect(2) == [2]

    def test_plain_function_and_class_are_shared(self):
        functions = (torch.relu, Point, len, statistics.mean)
        assert Copier()(functions) is functions

    def test_function_compiled_by_torch_gives_way_to_what_was_compiled(self):
        class Scale:
            factor = 2.0

            def __call__(self, x):
                return self.factor * x

        scale = Scale()
        copied_scale, copied = Copier()((scale, torch.compile(scale.__call__, backend="eager")))
        copied_scale.factor = 3.0
        assert copied(1.0) == 3.0

    def test_weak_references_point_at_the_copy(self):
        meter = Meter([1])
        copied, ref, proxy = Copier()((meter, weakref.ref(meter), weakref.proxy(meter)))
        assert ref() is copied
        proxy.values = [2]
        assert copied.values == [2]
        assert meter.values == [1]


class TestWhatCannotBeCopied:
    def things(self):
        return {"lock": threading.Lock(), "generator": (i for i in range(3)), "view": memoryview(b"abc")}

    def test_it_is_shared_and_everything_around_it_is_copied(self):
        original = Meter([self.things(), [1]])
        copied = Copier()(original)
        assert copied.values[0] == original.values[0]
        assert copied.values[0] is not original.values[0]
        assert copied.values[1] is not original.values[1]

    @pytest.mark.parametrize("name", ["lock", "generator", "view"])
    def test_it_is_refused_on_request_with_its_place(self, name):
        with pytest.raises(CopyError, match=r"at 'values\[0\]\[1\]'"):
            Copier(otherwise=refuse)(Meter([[0, self.things()[name]]]))

    def test_it_is_replaced_on_request(self):
        copied = Copier(otherwise=lambda value, path, error: f"{type(error).__name__} at {path}")([threading.Lock()])
        assert copied == ["TypeError at [0]"]

    def test_the_error_says_why(self):
        class Sealed:
            def __reduce_ex__(self, protocol):
                raise OSError("it is sealed")

        with pytest.raises(CopyError, match=r"Sealed at '\[0\]' can't be copied \(OSError: it is sealed\)"):
            Copier(otherwise=refuse)([Sealed()])

    def test_stand_in_decides_first(self):
        copied = Copier(stand_in=lambda value, _: "seen" if isinstance(value, Meter) else COPY)([Meter(), [1]])
        assert copied == ["seen", [1]]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scripted_module_is_shared_or_refused_like_anything_else(self):
        scripted = torch.jit.script(nn.Linear(2, 2))
        net = nn.Sequential(OrderedDict(head=scripted))
        assert Copier()(net).head is scripted
        with pytest.raises(CopyError, match="RecursiveScriptModule at 'head' can't be copied"):
            Copier(otherwise=refuse)(net)


class Labelled(torch.Tensor):
    """Needs what its own methods alone set."""

    @staticmethod
    def of(tensor, labels):
        tensor = tensor.as_subclass(Labelled)
        tensor.labels = labels
        return tensor

    def clone(self, *arguments, **named):
        return Labelled.of(super().clone(*arguments, **named), self.labels)


class TestTensors:
    def test_subclass_keeps_its_class_and_a_copy_of_its_attributes(self):
        original = Labelled.of(torch.ones(3), ["a"])
        copier = Copier(otherwise=refuse)
        copied = copier(original)
        snapshot = Snapshot(copier.made)
        copied.add_(1)
        copied.labels.append("b")
        assert type(copied) is Labelled
        assert original.labels == ["a"]
        snapshot.restore()
        assert copied.labels == ["a"]
        assert torch.equal(copied.as_subclass(torch.Tensor), torch.ones(3))

    def test_attributes_of_a_plain_tensor_are_kept(self):
        original = torch.ones(2)
        original.names_of_columns = ["a"]
        assert Copier()(original).names_of_columns == ["a"]

    def test_tensor_of_data_too_large_is_shared_and_known_with_its_place(self):
        small, large = torch.zeros(4), torch.zeros(8)
        copier = Copier(stand_in=as_data, largest=16)
        copied = copier({"small": small, "parts": TensorDataset(large)})
        assert copied["small"].data_ptr() != small.data_ptr()
        assert copied["parts"].tensors[0].data_ptr() == large.data_ptr()
        [(path, alias, version)] = copier.shared_tensors
        assert path == "['parts'].tensors[0]"
        assert alias._version == version
        large.add_(1)
        assert alias._version != version

    def test_tensors_are_shared_once_so_much_was_copied(self):
        copier = Copier(stand_in=as_data, budget=20)
        copier([TensorDataset(torch.zeros(size)) for size in (4, 4, 1)])
        assert [path for path, *_ in copier.shared_tensors] == ["[1].tensors[0]"]

    def test_what_is_no_data_is_copied_whatever_its_size(self):
        net = nn.BatchNorm1d(8)
        net.queue, net.parts = torch.zeros(8), [torch.zeros(8)]
        copier = Copier(largest=16)
        copied = copier(net)
        assert copied.running_mean.data_ptr() != net.running_mean.data_ptr()
        assert copied.queue.data_ptr() != net.queue.data_ptr()
        assert copied.parts[0].data_ptr() != net.parts[0].data_ptr()


def as_data(value, copier):
    return DATA if isinstance(value, TensorDataset) else COPY


class TestFiles:
    @pytest.mark.parametrize("mode", ["r", "rb"])
    def test_file_that_is_read_gets_a_position_of_its_own(self, tmp_path, mode):
        path = tmp_path / "data.txt"
        path.write_text("0123456789")
        with path.open(mode) as original:
            original.read(2)
            with Copier()(original) as copied:
                assert copied.read(3) in ("234", b"234")
            assert original.read(1) in ("2", b"2")

    def test_file_that_is_written_is_not_copied(self, tmp_path):
        with (tmp_path / "log.txt").open("w") as original, pytest.raises(CopyError):
            Copier(otherwise=refuse)(original)

    def test_buffer_in_memory_is_copied(self):
        original = io.BytesIO(b"abc")
        original.read(1)
        assert Copier(otherwise=refuse)(original).read() == b"bc"
        assert original.tell() == 1


class TestArrays:
    def test_read_only_array_is_shared(self):
        array = np.arange(3)
        array.flags.writeable = False
        assert Copier()(array) is array

    def test_array_of_objects_is_copied_deep(self):
        original = np.array([[1], [2]], dtype=object)
        original = np.empty(1, dtype=object)
        original[0] = [1]
        copied = Copier()(original)
        copied[0].append(2)
        assert original[0] == [1]


class TestSnapshot:
    @pytest.mark.parametrize(
        ("original", "change"),
        [
            ([1], lambda c: c.append(2)),
            (deque([1], maxlen=1), lambda c: c.append(2)),
            ({"a": 1}, lambda c: c.update(b=2)),
            ({1}, lambda c: c.add(2)),
            (Counter("a"), lambda c: c.update("b")),
            (OrderedDict(a=1, b=2), lambda c: c.move_to_end("a")),
            (Frozen(a=1), lambda c: OrderedDict.clear(c)),
            (defaultdict(list), lambda c: c["a"].append(1)),
            (Meter([1]), lambda c: (c.values.append(2), setattr(c, "new", 1))),
            (SlottedMeter([1]), lambda c: (c.values.append(2), setattr(c, "count", 1))),
            (np.zeros(2), lambda c: c.__setitem__(0, 1)),
            ([torch.zeros(2)], lambda c: c[0].add_(1)),
            ([torch.zeros(2)], lambda c: c[0].data.add_(1)),
            ([torch.zeros(2)], lambda c: c[0].add_(torch.ones(2, requires_grad=True))),
            ([torch.zeros(2)], lambda c: c[0].resize_(5)),
            ([torch.zeros(2)], lambda c: setattr(c[0], "data", torch.ones(3))),
            ([torch.zeros(2**18 + 1)], lambda c: c[0].add_(1)),
            ([0] * (LONG + 1), lambda c: c.append(1)),
            ([0] * (LONG + 1), lambda c: c.__setitem__(-1, 1)),
            (deque(range(LONG + 1), maxlen=LONG + 1), lambda c: c.append(1)),
            (Meter([1]), lambda c: setattr(c, "__dict__", {"values": [3]})),
            (Meter([1]), lambda c: setattr(c, "__class__", OtherMeter)),
            (defaultdict(list), lambda c: setattr(c, "default_factory", set)),
        ],
        ids=lambda value: type(value).__name__ if not callable(value) else "",
    )
    def test_any_change_is_undone_again_and_again(self, original, change):
        copier = Copier()
        copied = copier(original)
        snapshot = Snapshot(copier.made)
        for _ in range(2):
            change(copied)
            assert repr(copied) != repr(original) or torch.is_tensor(copied[0])
            snapshot.restore()
            assert repr(copied) == repr(original)
            if isinstance(copied, list) and torch.is_tensor(copied[0]):
                assert torch.equal(copied[0], original[0])
                assert not copied[0].requires_grad

    @pytest.mark.parametrize("kind", [set, type("Bag", (set,), {})])
    def test_a_set_is_gone_through_in_one_order_again_and_again(self, kind):
        draw = random.Random(0)
        original = [kind((draw.random(), draw.random()) for _ in range(size)) for size in range(1, 40)]
        copier = Copier()
        copied = copier(original)
        snapshot = Snapshot(copier.made)
        first = list(map(list, copied))
        for _ in range(2):
            for things in copied:
                things.update(range(50))
            snapshot.restore()
            assert list(map(list, copied)) == first

    def test_a_set_that_is_its_own_copy_keeps_its_order(self):
        class Shared(set):
            def __deepcopy__(self, memo):
                return self

        draw = random.Random(0)
        original = [Shared((draw.random(), draw.random()) for _ in range(size)) for size in range(1, 40)]
        before = list(map(list, original))
        copier = Copier()
        copier(original)
        Snapshot(copier.made)
        assert list(map(list, original)) == before

    def test_generators_repeat_themselves(self):
        original = [torch.Generator(), np.random.default_rng(), np.random.RandomState(), random.Random()]
        copier = Copier()
        torch_, numpy, legacy, python = copier(original)
        snapshot = Snapshot(copier.made)

        def draw():
            return float(torch.rand(1, generator=torch_)), numpy.random(), legacy.randn(), python.gauss(0, 1)

        first = draw()
        assert draw() != first
        snapshot.restore()
        assert draw() == first

    def test_variables_of_a_closure_come_back(self):
        def counter():
            count = 0

            def step():
                nonlocal count
                count += 1
                return count

            return step

        copier = Copier()
        step = copier(counter())
        snapshot = Snapshot(copier.made)
        assert (step(), step()) == (1, 2)
        snapshot.restore()
        assert step() == 1

    def test_what_was_made_later_is_restored_once_seen(self):
        copier = Copier()
        snapshot = Snapshot(copier.made)
        late = copier([1])
        snapshot.catch_up()
        late.append(2)
        snapshot.restore()
        assert late == [1]
