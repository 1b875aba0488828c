from pathlib import Path

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import WandbLogger

from lightning_probes import Sharpness
from lightning_probes.probing.names import check_name, file_name
from tests.resumable import begin, go_on, resumable
from tests.tester import fit, probe
from tests.wandb_offline import read_all


@pytest.mark.parametrize("name", ["", "a*", "*", "a.b", "a\\b", "a\nb", "a\x00", "\ud800", None, 3])
def test_what_can_not_be_a_key_is_refused_by_the_constructor(name):
    with pytest.raises(ValueError, match="name must be a text without"):
        Sharpness(name=name)


@pytest.mark.parametrize("name", ["a" * 201, "曲" * 67, ":" * 67])
def test_what_can_not_be_a_file_name_is_refused_by_the_constructor(name):
    with pytest.raises(ValueError, match="name must be shorter: as a file name it has 201 bytes"):
        Sharpness(name=name)


LONG = "初始化与当前参数之间的损失函数曲率测量结果第一部分验证集"


@pytest.mark.parametrize("name", [LONG, "head/val: a 'b' \"c\" <d>|?", "हिन्दी"])
def test_any_other_name_keeps_its_history_over_a_break(name, tmp_path):
    begun, resumed = probe("sharpness", name=name), probe("sharpness", name=name)
    go_on(tmp_path, begin(tmp_path, [begun]), [resumed])
    assert [row["step"] for row in resumed.history] == [2, 15]
    assert f"{name}/lambda_max" in resumed.history[0]


def test_any_other_name_is_the_prefix_of_keys_in_wandb(tmp_path):
    names = [LONG, "head/val: a"]
    probes = [probe("sharpness", name=name) for name in names]
    fit(resumable, probes, tmp_path, logger=WandbLogger(save_dir=tmp_path, offline=True))
    wandb.finish()
    (run,) = read_all(tmp_path)
    for name in names:
        assert len(run.rows(f"{name}/lambda_max")) == 2


@given(st.text(max_size=40))
def test_names_that_are_taken_fit_a_folder_and_differ_as_files_do(name):
    try:
        check_name(name)
    except ValueError:
        return
    assert Path("folder", f"{file_name(name)}-12.jsonl").parent == Path("folder")
    assert len(f"{file_name(name)}-12.jsonl".encode()) <= 255
    assert not set(file_name(name)) & set('<>:"/\\|?*')
