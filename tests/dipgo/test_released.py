from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipgo import DipgoError, Sampler, Schedule
from dipgo.__main__ import main
from dipgo.families import SD15
from dipgo.released import import_released

SITES = SD15.sites(SD15.tiny())
STEPS = 5
KEYS = [("down", "block", i, 0) for i in range(4)] + [("mid", "mid_block", 0, 0)]
KEYS += [("up", "block", j, 0) for j in (3, 2, 1, 0)]  # in order of execution: j = 0 is nearest to the output


def published(reuse: np.ndarray, **changes: Any) -> list[dict]:
    """Gates as the authors store them, on the CPU."""
    gates = {True: torch.tensor([0.7, 0.3], **changes), False: torch.tensor([0.2, 0.8], **changes)}
    return [{key: gates[bool(flag)].clone() for key, flag in zip(KEYS, row, strict=True)} for row in reuse]


def on_a_gpu(data: bytes) -> bytes:
    """The pickle as a machine with a GPU would have written it: torch's own bytes within it tag every storage."""
    cpu, cuda = (b"X" + struct.pack("<I", len(tag)) + tag for tag in (b"cpu", b"cuda:0"))
    grown = len(cuda) - len(cpu)
    out, rest = b"", data
    start = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as every saved storage begins
    while start in rest:
        at = rest.index(start)
        head, opcode = rest[:at], "<I" if rest[at - 5 : at - 4] == b"B" else "<B"
        size = struct.calcsize(opcode)
        length = struct.unpack(opcode, head[-size:])[0]
        saved = rest[at : at + length].replace(cpu, cuda, 1)
        assert len(saved) == length + grown
        out += head[: -size - 1] + b"B" + struct.pack("<I", len(saved)) + saved
        rest = rest[at + length :]
    return out + rest


@pytest.fixture
def reuse() -> np.ndarray:
    flags = np.random.default_rng(0).random((STEPS, len(SITES))) < 0.5
    flags[0] = False
    return flags


@pytest.fixture
def file(tmp_path, reuse) -> Path:
    path = tmp_path / "gates.pkl"
    path.write_bytes(pickle.dumps(published(reuse), protocol=2))
    return path


def sampler(name: str = "ddim", steps: int = STEPS) -> Sampler:
    return Sampler(name, {}, steps)


def test_every_block_lands_where_the_network_has_it(file, reuse):
    schedule = import_released(file, SITES, sampler())
    assert schedule.sites == SITES and np.array_equal(schedule.reuse, reuse)


@pytest.mark.parametrize("protocol", [3, 4])
def test_tensors_of_a_gpu_are_read_without_one(file, reuse, protocol):
    data = on_a_gpu(pickle.dumps(published(reuse, dtype=torch.float16), protocol=protocol))
    assert b"cuda:0" in data
    file.write_bytes(data)
    assert np.array_equal(import_released(file, SITES, sampler()).reuse, reuse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_numbers_of_any_kind_are_compared(file, reuse, dtype):
    gates = [{key: (gate * 1.5).round().to(dtype) for key, gate in step.items()} for step in published(reuse)]
    file.write_bytes(pickle.dumps(gates))
    assert np.array_equal(import_released(file, SITES, sampler()).reuse, reuse)


def test_it_carries_the_samplers_timesteps(file):
    schedule = import_released(file, SITES, sampler("plms"))
    assert schedule.timesteps.tolist() == sampler("plms").timesteps.tolist()


def test_the_two_calls_of_plms_at_one_timestep_share_a_row(file, reuse):
    schedule = import_released(file, SITES, sampler("plms"))
    assert schedule.calls == STEPS + 1
    assert np.array_equal(schedule.reuse, reuse[[0, 1, 1, 2, 3, 4]])


def test_the_first_step_is_computed_whatever_the_file_says(file, reuse):
    file.write_bytes(pickle.dumps(published(np.ones_like(reuse))))
    schedule = import_released(file, SITES, sampler())
    assert not schedule.reuse[0].any() and schedule.reuse[1:].all()


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def inside_a_tensor(mark: Path) -> bytes:
    saved = io.BytesIO()
    torch.save(Hostile(mark), saved)
    call = (b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(saved.getvalue()))) + saved.getvalue()
    return b"\x80\x03]" + call + b"\x85Ra."


@pytest.mark.parametrize("where", ["in the list", "inside a tensor"])
def test_a_hostile_pickle_is_refused_by_name_and_never_run(file, tmp_path, where):
    mark = tmp_path / "ran"
    file.write_bytes(pickle.dumps([Hostile(mark)]) if where == "in the list" else inside_a_tensor(mark))
    with pytest.raises(DipgoError, match=r"asks for (posix|nt|os)\.mkdir") as caught:
        import_released(file, SITES, sampler())
    assert "\n" not in str(caught.value) and not mark.exists()


def test_other_files_are_refused_by_one_line(file, tmp_path, reuse):
    gates = published(reuse)
    missing = [{key: gate for key, gate in step.items() if key[0] != "mid"} for step in gates]
    three = [{key: torch.zeros(3) for key in KEYS} for _ in gates]
    nan = [{key: torch.full((2,), torch.nan) for key in KEYS} for _ in gates]
    phases = [{key: torch.tensor([1 + 1j, 0.5]) for key in KEYS} for _ in gates]
    for data, message in [
        (pickle.dumps(phases), r"step 0, \('down', 'block', 0, 0\): not a vector of two numbers"),
        (pickle.dumps({"gates": gates}), "a list with one dict a timestep"),
        (pickle.dumps(gates[:3]), "gates of 3 timesteps, but the sampler has 5"),
        (pickle.dumps(missing), r"step 0 differs from the model's blocks in \('mid'"),
        (pickle.dumps(three), "not a vector of two numbers"),
        (pickle.dumps(nan), "not a vector of two numbers"),
        (pickle.dumps(gates)[:-40], "not a pickle of tensors"),
        (b"hello", "not a pickle of tensors"),
        (b"", "not a pickle of tensors"),
    ]:
        file.write_bytes(data)
        with pytest.raises(DipgoError, match=message) as caught:
            import_released(file, SITES, sampler())
        assert "\n" not in str(caught.value), message
    with pytest.raises(DipgoError, match="No such file"):
        import_released(tmp_path / "nothing", SITES, sampler())


def test_the_command_writes_a_schedule_or_one_line(file, tmp_path, reuse, capsys):
    out = tmp_path / "schedule.json"
    command = ["import-released", str(file), "--model", "sd15", "--scheduler", "plms", "-o", str(out)]
    assert main([*command, "--steps", "7"]) == 1 and not out.exists()
    assert capsys.readouterr().err == f"error: {file}: gates of 5 timesteps, but the sampler has 7 steps\n"
    assert main([*command, "--steps", "5"]) == 0
    assert Schedule.load(out).calls == STEPS + 1
