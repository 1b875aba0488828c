import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_probes.probing.run.init_state import capture_state, keep_state, kept_state, load_state


def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    module.register_buffer("scale", torch.ones(2, dtype=torch.float64), persistent=False)
    return module


def test_captured_are_parameters_and_all_buffers_in_their_own_dtype():
    module = net().bfloat16()
    state = capture_state(module)
    assert state.keys() == {*dict(module.named_parameters()), *dict(module.named_buffers())}
    assert state["scale"].dtype == state["0.weight"].dtype == torch.bfloat16
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in state.values())


def test_later_training_does_not_reach_the_captured_state():
    module = net()
    state, same = capture_state(module), capture_state(net())
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)
    assert state.keys() == same.keys()
    assert all(torch.equal(state[name], same[name]) for name in same)


def test_tied_parameters_are_captured_once():
    module = net()
    module[2].weight = nn.Parameter(torch.zeros(4, 4))
    module.tied = module[2].weight
    assert [name for name in capture_state(module) if name in ("tied", "2.weight")] == ["tied"]


@pytest.mark.parametrize("form", ["state dict", "checkpoint", "saved state dict", "saved checkpoint", "path as text"])
def test_state_is_read_in_every_form(tmp_path, form):
    module = net()
    expected = {name: tensor for name, tensor in capture_state(module).items() if name != "scale"}
    content = module.state_dict() if "state dict" in form else {"state_dict": module.state_dict(), "epoch": 3}
    source = content
    if "saved" in form or "path" in form:
        source = tmp_path / "init.ckpt"
        torch.save(content, source)
        source = str(source) if "path" in form else source
    loaded = load_state(source, module)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_that_lightning_wrote_is_read(tmp_path, weights_only):
    module = BoringModel()
    trainer = L.Trainer(
        max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "init.ckpt", weights_only)
    assert torch.equal(load_state(tmp_path / "init.ckpt", module)["layer.weight"], module.layer.weight)


def test_a_live_state_dict_is_copied():
    module = net()
    loaded = load_state(module.state_dict(), module)
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(loaded["0.weight"], before)


@pytest.mark.parametrize("compiled", ["then", "now"])
def test_compiling_a_submodule_makes_no_difference(compiled):
    plain, wrapped = net(), net()
    wrapped[0] = torch.compile(wrapped[0], backend="eager")
    saved, module = (wrapped, plain) if compiled == "then" else (plain, wrapped)
    loaded = load_state(saved.state_dict(), module)
    assert all(torch.equal(loaded[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), r"'0.weight' of shape \(4, 3\) is missing there.*init_state="),
        (lambda state: state.update({"0.weight": torch.zeros(3, 3)}), r"'0.weight'.*is of shape \(3, 3\) there"),
        (lambda state: state.update({"0.weight": "text"}), r"'0.weight'.*is missing there"),
    ],
)
def test_a_state_of_another_model_is_an_error(change, message):
    module = net()
    state = module.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_state(state, module)


def test_tensors_that_the_module_does_not_have_are_left_out_and_missing_buffers_are_no_error():
    module = net()
    state = {**module.state_dict(), "other": torch.zeros(1)}
    del state["1.running_mean"]
    loaded = load_state(state, module)
    assert "other" not in loaded
    assert "1.running_mean" not in loaded


class Code:
    pass


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_may_run_code_is_an_error_that_says_how_to_load_it(tmp_path, legacy):
    torch.save({"state_dict": {}, "code": Code()}, tmp_path / "init.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"^other=.*init.ckpt' holds.*may run code.*, other=(torch.load.*)$") as caught:
        load_state(tmp_path / "init.ckpt", net(), "other")
    shown = str(caught.value).rpartition("other=")[2]
    assert eval(shown, {"torch": torch}) == {}  # what the sentence shows is what helps


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize(("content", "kind"), [([1], "list"), (torch.ones(2), "Tensor"), ({"state_dict": 3}, "int")])
def test_something_else_than_a_state_is_an_error_that_says_what_to_pass(tmp_path, content, kind, in_a_file):
    torch.save(content, tmp_path / "init.ckpt")
    source = tmp_path / "init.ckpt" if in_a_file else content
    with pytest.raises(ValueError, match=rf"init_state holds an object of type {kind}, .*pass .*init_state="):
        load_state(source, net())


@pytest.mark.parametrize("content", [{"code": Code()}, [1], {}, None])
def test_every_message_names_the_argument_that_the_state_was_given_as(tmp_path, content):
    path = tmp_path / "end.ckpt"
    path.write_bytes(b"") if content is None else torch.save(content, path)
    with pytest.raises(ValueError, match=r"^other[ =].*[ ,]( as)? ?other=") as error:
        load_state(path, net(), "other")
    assert "init_state" not in str(error.value)


def test_a_module_is_read_like_its_state_dict_and_copied():
    source = net()
    loaded = load_state(source, net())
    assert loaded.keys() == capture_state(source).keys()
    with torch.no_grad():
        source[0].weight.zero_()
    assert torch.equal(loaded["0.weight"], net()[0].weight)


def test_all_that_differs_is_listed_and_the_argument_is_named():
    state = {**net().state_dict(), "3.weight": torch.zeros(2, 2)}
    state["0.bias"] = torch.zeros(9)
    del state["2.weight"]
    expected = (
        r"^other does not belong to this module: parameter '0.bias' of shape \(4,\) is of shape \(9,\) there, "
        r"parameter '2.weight' of shape \(4, 4\) is missing there, '3.weight' of shape \(2, 2\) is there and not here; "
        r"pass .* other=$"
    )
    with pytest.raises(ValueError, match=expected):
        load_state(state, net(), "other", whole=True)


def test_a_deeper_module_is_another_function_and_no_state_of_this_one():
    deeper = nn.Sequential(*net(), nn.Linear(4, 4))
    load_state(deeper, net())
    with pytest.raises(ValueError, match=r"'3.bias' of shape \(4,\) is there and not here"):
        load_state(deeper, net(), "other", whole=True)


@pytest.mark.parametrize("tied", ["here", "there", "in both"])
def test_tied_parameters_must_be_equal_in_the_other_state(tied):
    def made(ties: bool):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if ties:
            module[1].weight = module[0].weight
        return module

    here, there = made(tied != "there"), made(tied != "here")
    if tied == "here":
        with pytest.raises(ValueError, match=r"'1.weight' differs from '0.weight' there, and is tied to it here"):
            load_state(there, here, "other", whole=True)
        return
    for source in (there, there.state_dict()):
        loaded = load_state(source, here, "other", whole=True)
        assert all(torch.equal(loaded[name], there[0].weight) for name in loaded if name.endswith("weight"))


def test_a_lazy_module_is_no_state_either():
    with pytest.raises(ValueError, match="is not initialised: run one batch"):
        load_state(nn.Sequential(nn.LazyLinear(2)), nn.Sequential(nn.Linear(3, 2)), "other")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: b"", "EOFError"),
        (lambda content: content[: len(content) // 2], "RuntimeError: PytorchStreamReader failed"),
        (lambda content: b"a: 1\n", "IndexError: pop from empty list"),
        (lambda content: b"hello world", "KeyError"),
        (lambda content: b'{"weight": 1}', "UnpicklingError"),
    ],
    ids=["empty", "cut off", "yaml", "text", "json"],
)
def test_a_broken_file_is_an_error_in_one_line_that_names_init_state(tmp_path, damage, found):
    path = tmp_path / "init.ckpt"
    torch.save(net().state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    expected = (
        rf"^init_state=.*init.ckpt' can't be read as a file of torch.save \({found}[^\n]*\): pass .* init_state=$"
    )
    with pytest.raises(ValueError, match=expected):
        load_state(path, net())


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^other=.*none\.ckpt' does not exist: pass .* as other=$"):
        load_state(tmp_path / "none.ckpt", net(), "other")


@pytest.mark.parametrize("module", [nn.LazyLinear(2), nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_has_no_initial_state_before_its_first_batch(module):
    with pytest.raises(ValueError, match="is not initialised: run one batch"):
        capture_state(module)
    with pytest.raises(ValueError, match="is not initialised: run one batch"):
        load_state({}, module)


# -- kept beside the run -----------------------------------------------------------------------------------------------

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.cfloat,
)


@st.composite
def states(draw):
    """Tensors of every kind that a module registers: empty, of no dimension, transposed, expanded, tied, of NaN."""
    state = {}
    for name in draw(st.lists(st.text("a.0_é", min_size=1), max_size=3, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        values = torch.full(shape, draw(st.sampled_from([0.0, 1.0, float("nan")])), dtype=torch.float64)
        dtype = draw(st.sampled_from(DTYPES))
        tensor = values.to(dtype) if dtype.is_floating_point or dtype.is_complex else values.nan_to_num().to(dtype)
        kind = draw(st.sampled_from(["plain", "transposed", "expanded", "part", "tied"]))
        if kind == "transposed" and shape:
            tensor = tensor.transpose(0, -1)
        if kind == "expanded":
            tensor = tensor.expand(2, *shape)
        if kind == "part" and shape:
            tensor = tensor[1:]
        state[name] = next(iter(state.values()), tensor) if kind == "tied" else tensor
    return state


@given(states())
def test_a_state_that_was_kept_is_and_is_found_as_it_was(state):
    before = dict(state)
    with tempfile.TemporaryDirectory() as directory:
        found = kept_state(keep_state(state, Path(directory, "probes")))
    assert found.keys() == state.keys() == before.keys()
    for name, tensor in before.items():
        assert found[name].dtype == state[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num())
        assert torch.equal(state[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {**state, "0.weight": state["0.weight"] + 1e-6},
        lambda state: {**state, "0.weight": state["0.weight"].reshape(3, 4)},
        lambda state: {**state, "0.weight": state["0.weight"].view(torch.int32)},
        lambda state: {("other" if name == "scale" else name): tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if name != "scale"},
    ],
    ids=["value", "shape", "dtype", "name", "missing"],
)
def test_a_state_that_differs_in_anything_is_another(change, tmp_path):
    state = capture_state(net())
    kept = keep_state(state, tmp_path)
    assert keep_state(change(state), tmp_path)["path"] != kept["path"]
    other = change(state)
    torch.save(other, kept["path"])
    assert kept_state(kept) is None


def test_a_state_is_written_once_and_another_beside_it(tmp_path):
    state = capture_state(net())
    kept = keep_state(state, tmp_path)
    written = Path(kept["path"]).stat()
    assert keep_state(dict(reversed(state.items())), tmp_path) == kept
    assert Path(kept["path"]).stat().st_mtime_ns == written.st_mtime_ns
    keep_state({"weight": torch.ones(1)}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert kept_state(kept).keys() == state.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files, in place of a full disk")
@pytest.mark.parametrize("size", [1_000, 100_000])
def test_a_full_disk_is_an_os_error_and_leaves_no_file(tmp_path, size):
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(size)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["OSError"]
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
from torch import nn
from lightning_probes.probing.run.init_state import capture_state, keep_state

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
try:
    keep_state(capture_state(nn.Linear(512, 512)), Path("."))
except OSError:
    print("OSError")
"""


def test_a_state_outlives_its_file(tmp_path):
    state, same = capture_state(net()), capture_state(net())
    Path(keep_state(state, tmp_path)["path"]).unlink()
    assert all(torch.equal(state[name], same[name]) for name in same)
    assert kept_state(keep_state(state, tmp_path)).keys() == same.keys()


@given(st.data())
def test_a_file_in_which_a_byte_changed_is_the_state_or_none(data):
    with tempfile.TemporaryDirectory() as directory:
        kept = keep_state({"weight": torch.ones(2)}, Path(directory))
        content = bytearray(Path(kept["path"]).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        Path(kept["path"]).write_bytes(content)
        found = kept_state(kept)
        assert found is None or torch.equal(found["weight"], torch.ones(2))


@given(st.data())
def test_a_file_that_was_cut_off_is_no_state(data):
    with tempfile.TemporaryDirectory() as directory:
        kept = keep_state({"weight": torch.ones(2)}, Path(directory))
        content = Path(kept["path"]).read_bytes()
        Path(kept["path"]).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        assert kept_state(kept) is None


@pytest.mark.parametrize("content", [[1], {"a": 1}, None, {"a": torch.ones(1).to_sparse()}])
def test_a_file_that_holds_no_plain_tensors_is_no_state(content, tmp_path):
    torch.save(content, tmp_path / "init.pt")
    assert kept_state({"path": str(tmp_path / "init.pt"), "sha256": ""}) is None


def test_a_state_that_moved_along_with_the_checkpoint_is_found(tmp_path):
    kept = keep_state({"weight": torch.ones(2)}, tmp_path / "old" / "probes")
    (tmp_path / "old").rename(tmp_path / "new")
    assert kept_state(kept) is None
    assert torch.equal(kept_state(kept, tmp_path / "new" / "checkpoints" / "last.ckpt")["weight"], torch.ones(2))
