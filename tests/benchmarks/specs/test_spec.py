"""Run specs and suites."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.specs.run import RunSpec
from benchmarks.specs.suite import load_suite
from dipgo.errors import DipgoError

SUITE = ROOT / "benchmarks" / "suites" / "table1.toml"
REVISIONS = {"emoji-sd": "f00d" * 16, "emoji-bk-base": "ba5e" * 16, "emoji-bk-small": "5a11" * 16}
SPEC = RunSpec(
    id="ours-0.80",
    profile="embedded",
    model="emoji-sd",
    revision="f00d",
    method="dipgo",
    scheduler="plms",
    steps=50,
    guidance=4.0,
    resolution=64,
    dtype="float32",
    prompts=("seen", "held-out"),
    limit=300,
    seed=0,
    metrics=("clip_score", "psnr"),
    params={"ratio": 0.8, "train": {"steps": 10, "betas": [0.9, 0.99]}},
    reference="plms-50",
)


def write_suite(folder: Path, text: str) -> Path:
    path = folder / "suite.toml"
    path.write_text(
        '[defaults]\nmodel="m"\nmethod="fewer_steps"\nscheduler="ddim"\nsteps=5\nguidance=2\n'
        'resolution=8\ndtype="float32"\nprompts=["seen"]\nlimit=2\nseed=0\nmetrics=[]\nreference="dense"\n' + text
    )
    return path


def test_json_round_trip_keeps_spec_and_digest():
    again = RunSpec.from_json(json.loads(json.dumps(SPEC.to_json())))
    assert again == SPEC and again.digest == SPEC.digest and hash(again) == hash(SPEC)


def test_travels_between_processes():
    assert pickle.loads(pickle.dumps(SPEC)) == SPEC


def test_digest_depends_on_every_field_but_the_id():
    other = {
        "dtype": "float16",
        "profile": "embedded",
        "scheduler": "ddim",
        "prompts": ("seen",),
        "metrics": (),
        "params": {},
        "needs": ("a",),
    }
    for name, value in SPEC.to_json().items():
        changed = other.get(name, value + 1 if isinstance(value, (int, float)) else f"{value}x")
        same = replace(SPEC, **{name: changed}).digest == SPEC.digest
        assert same == (name in ("id", "profile")), name  # there is one profile so far


def test_digest_ignores_the_order_of_params_and_the_type_of_a_whole_guidance():
    flipped = {"train": {"betas": (0.9, 0.99), "steps": 10}, "ratio": 0.8}
    assert replace(SPEC, params=flipped, guidance=4).digest == SPEC.digest
    assert len(SPEC.digest) == 16 and int(SPEC.digest, 16) >= 0


def test_params_are_read_only_at_every_depth_and_detached_from_the_callers_dict():
    params = {"train": {"steps": 10}}
    spec = replace(SPEC, params=params)
    params["train"]["steps"] = 11
    assert spec.params["train"]["steps"] == 10
    with pytest.raises(TypeError):
        spec.params["train"]["steps"] = 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidanse": 3.0}, "unknown field 'guidanse'; did you mean guidance"),
        ({"scheduler": "plsm"}, "unknown scheduler 'plsm'; did you mean plms"),
        ({"profile": "embeded"}, "unknown profile 'embeded'; did you mean embedded"),
        ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
        ({"limit": True}, "limit is True; it must be an integer"),
        ({"guidance": float("nan")}, "guidance is nan; it must be a finite number"),
        ({"prompts": "seen"}, "prompts is 'seen'; it must be a list of strings"),
        ({"id": "a/b"}, "id is 'a/b'"),
        ({"params": {"x": {1, 2}}}, "params must be plain JSON values"),
        ({"params": {"x": float("inf")}}, "params must be plain JSON values"),
    ],
)
def test_bad_fields_are_named_in_one_line(change, words):
    with pytest.raises(DipgoError, match="^[^\n]*$") as error:
        RunSpec.from_json({**SPEC.to_json(), **change})
    assert words in str(error.value)


def test_a_missing_field_is_named():
    data = SPEC.to_json()
    del data["revision"]
    with pytest.raises(DipgoError, match="run 'ours-0.80': field 'revision' is missing"):
        RunSpec.from_json(data)


def test_suite_merges_method_params_and_orders_runs_after_what_they_need(tmp_path):
    path = write_suite(
        tmp_path,
        "[method.dipgo]\nratio=0.5\ntrain={steps=3, lr=0.1}\n"
        '[[run]]\nid="own"\nparams={of="ours"}\n'
        '[[run]]\nid="ours"\nmethod="dipgo"\nparams={ratio=0.9, train={steps=4}}\n'
        '[[run]]\nid="dense"\nmethod="dense"\n',
    )
    specs = {spec.id: spec for spec in load_suite(path, lambda row: "r")}
    assert list(specs) == ["dense", "ours", "own"]
    assert specs["ours"].to_json()["params"] == {"ratio": 0.9, "train": {"steps": 4, "lr": 0.1}}
    assert specs["dense"].reference is None and specs["ours"].reference == "dense"
    assert specs["own"].needs == (specs["dense"].digest, specs["ours"].digest)
    assert specs["own"].revision == "r"


def test_a_changed_training_changes_the_digest_of_the_run_that_uses_its_schedule(tmp_path):
    text = '[[run]]\nid="dense"\n[[run]]\nid="own"\nparams={of="ours"}\n[[run]]\nid="ours"\nseed='
    one, two = ({s.id: s.digest for s in load_suite(write_suite(tmp_path, text + n), lambda row: "r")} for n in "12")
    assert one["own"] != two["own"] and one["dense"] == two["dense"]


def test_two_ids_may_share_a_run(tmp_path):
    path = write_suite(tmp_path, '[[run]]\nid="dense"\n[[run]]\nid="a"\n[[run]]\nid="b"\n')
    digests = {spec.id: spec.digest for spec in load_suite(path, lambda row: "r")}
    assert digests["a"] == digests["b"] != digests["dense"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[run]]\nid="dense"\n[[run]]\nid="dense"\n', "two runs have the id 'dense'"),
        ('[[run]]\nid="a"\n', "run 'a' needs an unknown run 'dense'"),
        ('[[run]]\nid="dense"\nparams={of="a"}\n[[run]]\nid="a"\n', "needs itself"),
        ('[method.fewer_step]\nx=1\n[[run]]\nid="dense"\n', "did you mean fewer_steps"),
        ('[[runs]]\nid="dense"\n', "unknown table 'runs'; did you mean run"),
        ("[[run]\n", "suite.toml: "),
    ],
)
def test_bad_suites_get_one_line_that_names_the_file(tmp_path, text, words):
    with pytest.raises(DipgoError, match="suite.toml") as error:
        load_suite(write_suite(tmp_path, text), lambda row: "r")
    assert words in str(error.value)


def test_table1_has_every_row_and_its_controls_at_each_ratio():
    specs = {spec.id: spec for spec in load_suite(SUITE, lambda row: REVISIONS[row["model"]])}
    assert len(specs) == 8 + 4 * 12 + 2
    for ratio in ("0.80", "0.85", "0.90", "0.95"):
        calls = int((1 - float(ratio)) * 50 + 0.5 + 1e-9)  # rounded half up
        ours = specs[f"ours-{ratio}"]
        assert ours.params["ratio"] == float(ratio) and ours.params["train"]["seed"] == 0
        for name in ("uniform", "forecast1", "forecast2", "step-search", "plus"):
            assert specs[f"{name}-{ratio}"].params["calls"] == calls
        for scheduler in ("plms", "ddim", "dpm", "unipc"):
            control = specs[f"{scheduler}-{calls}"]
            assert (control.scheduler, control.steps, control.method) == (scheduler, calls, "dense")
        own = specs[f"own-{ratio}"]
        assert own.params["of"] == ours.id and own.scheduler == "ddim" and ours.digest in own.needs
    dense = specs["plms-50"]
    assert dense.method == "dense" and dense.reference is None
    assert all(spec.reference == "plms-50" for name, spec in specs.items() if name != "plms-50")
    assert {(spec.limit, spec.prompts, spec.seed) for spec in specs.values()} == {(300, ("seen", "held-out"), 0)}
