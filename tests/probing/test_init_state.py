import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_probes.probing.init_state import capture_state, load_state


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


def test_a_checkpoint_that_lightning_wrote_is_read(tmp_path):
    module = BoringModel()
    trainer = L.Trainer(
        max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "init.ckpt")
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


@pytest.mark.parametrize(
    ("content", "message"), [({"state_dict": {}, "code": Code()}, "may run code"), ([1], "a list")]
)
def test_a_file_of_something_else_is_an_error_that_names_init_state(tmp_path, content, message):
    torch.save(content, tmp_path / "init.ckpt")
    with pytest.raises(ValueError, match=rf"init_state=.*init.ckpt' holds.*{message}"):
        load_state(tmp_path / "init.ckpt", net())
