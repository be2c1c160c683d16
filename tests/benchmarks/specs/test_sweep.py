"""Sweeps: one table that stands for several."""

from __future__ import annotations

import pytest

from benchmarks.specs.suite import load_suite, read_suite
from benchmarks.specs.sweep import expand
from dipgo.errors import DipgoError
from tests.benchmarks.specs.test_spec import write_suite

PRUNED = {"ratio": [0.8, 0.85], "calls": [10, 8]}


def test_an_item_without_a_sweep_stands_for_itself():
    assert list(expand({"id": "dense", "steps": 50}, {}, "here")) == [{"id": "dense", "steps": 50}]


def test_lists_of_a_sweep_are_walked_together_and_a_text_may_say_how_a_value_is_written():
    item = {"id": "ours-{ratio:.2f}", "over": "pruned", "controls": {"few": ["plms-{calls}", "dpm-{calls}"]}}
    assert list(expand(item, {"pruned": PRUNED}, "here")) == [
        {"id": "ours-0.80", "controls": {"few": ["plms-10", "dpm-10"]}},
        {"id": "ours-0.85", "controls": {"few": ["plms-8", "dpm-8"]}},
    ]


def test_a_placeholder_alone_keeps_the_values_type():
    sweep = {"ratio": [0.8], "calls": [10], "learn": [{"rounds": 0}], "part": [["a", "b"]]}
    item = {"over": "s", "params": {"ratio": "{ratio}", "calls": "{calls}", "learn": "{learn}"}, "part": "{part}"}
    assert list(expand(item, {"s": sweep}, "here")) == [
        {"params": {"ratio": 0.8, "calls": 10, "learn": {"rounds": 0}}, "part": ["a", "b"]}
    ]


def test_sweeps_follow_each_other_and_each_brings_its_defaults_that_the_item_overrides():
    sweeps = {
        "printed": {"n": [1, 2], "defaults": {"group": "to {n}", "steps": 4}},
        "beyond": {"n": [3], "defaults": {"group": "beyond, to {n}", "steps": 5}},
        "alone": {"defaults": {"group": "alone"}},
    }
    found = list(expand({"id": "a-{n}", "over": ["printed", "beyond"], "steps": 9}, sweeps, "here"))
    assert [(item["id"], item["group"], item["steps"]) for item in found] == [
        ("a-1", "to 1", 9),
        ("a-2", "to 2", 9),
        ("a-3", "beyond, to 3", 9),
    ]
    assert list(expand({"id": "b", "over": "alone"}, sweeps, "here")) == [{"group": "alone", "id": "b"}]


SWEEP = "[sweep.pruned]\nratio=[0.8, 0.9]\ncalls=[2, 1]\n"
RUN = '[[run]]\nid="dense"\n[[run]]\nid="a-{calls}"\nover="pruned"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f'{SWEEP}{RUN}steps="{{call}}"\n',
            "run 'a-{calls}' over 'pruned': steps: unknown placeholder 'call'; did",
        ),
        (f'{SWEEP}{RUN}params={{train={{n="{{ration}}"}}}}\n', "params: train: n: unknown placeholder 'ration'"),
        (
            f'{SWEEP}[[run]]\nid="a-{{calls}}"\n',
            "run 'a-{calls}': id: unknown placeholder 'calls'; known: none",
        ),
        (f'{SWEEP}{RUN}label="{{ratio:.2x}}"\n', "over 'pruned': label: '{ratio:.2x}': Unknown format code"),
        (f'{SWEEP}{RUN}label="{{ratio"\n', "over 'pruned': label: '{ratio': expected '}'"),
        (f'{SWEEP}{RUN}label="{{}}"\n', "over 'pruned': label: '{}': "),
        (SWEEP.replace("2, 1", "2") + RUN, "sweep 'pruned' needs lists of one length; ratio has 2, calls has 1"),
        (SWEEP.replace("[2, 1]", "2") + RUN, "sweep 'pruned': calls is 2; it must be a list of values"),
        (SWEEP.replace("[2, 1]", "[]") + RUN, "sweep 'pruned': calls is []; it must be a list of values"),
        (SWEEP.replace("2, 1", "2, 2") + RUN, "run 'a-{calls}': two runs have the id 'a-2'; rename one"),
        (f'{SWEEP}{RUN}[[run]]\nid="a-1"\n', "run 'a-1': two runs have the id 'a-1'; rename one"),
        (
            RUN.replace('over="pruned"', 'over="pruend"') + SWEEP,
            "run 'a-{calls}': unknown sweep 'pruend'; did you",
        ),
        (
            f'{SWEEP}{RUN}[profile.paper.run."a-{{call}}"]\nsteps=1\n',
            "[profile]: unknown run 'a-{call}'; did",
        ),
    ],
)
def test_a_bad_sweep_gets_one_line_that_names_the_file_the_sweep_and_the_field(tmp_path, text, words):
    with pytest.raises(DipgoError, match="^[^\n]*suite.toml: [^\n]*$") as error:
        read_suite(write_suite(tmp_path, text), "paper" if "profile" in text else "embedded")
    assert words in str(error.value)


def test_a_profile_changes_all_runs_of_a_sweep_by_the_id_that_is_written(tmp_path):
    text = f'{SWEEP}{RUN}params={{train={{n=1}}}}\n[profile.paper.run."a-{{calls}}".params.train]\nn="{{calls}}"\n'
    path = write_suite(tmp_path, text)
    assert [row["params"] for row in read_suite(path).values()] == [{}, {"train": {"n": 1}}, {"train": {"n": 1}}]
    rows = read_suite(path, "paper")
    assert [row["params"] for row in rows.values()] == [{}, {"train": {"n": 2}}, {"train": {"n": 1}}]


def test_what_a_table_shows_of_a_run_is_no_part_of_it(tmp_path):
    shown = 'label="L"\ngroup="G"\npaper={method="M"}\ncontrols=["a"]\n'
    texts = (f'[[run]]\nid="dense"\n{more}' for more in ("", shown))
    one, other = (load_suite(write_suite(tmp_path, text), lambda row: "r")[0] for text in texts)
    assert one == other and read_suite(tmp_path / "suite.toml")["dense"]["label"] == "L"


def test_a_suite_takes_defaults_methods_and_profiles_from_the_one_it_extends_and_no_run(tmp_path):
    base = (
        '[method.dense]\nratio=0.5\ntrain={steps=3, lr=0.1}\n[[run]]\nid="dense"\nmethod="dense"\n'
        '[sweep.s]\nn=[1]\n[profile.paper.defaults]\nlimit=9\n[profile.paper.run."dense"]\nlimit=10\n'
    )
    write_suite(tmp_path, base)
    (tmp_path / "other.toml").write_text(
        'extends="suite"\n[defaults]\nsteps=7\n[method.dense.train]\nlr=0.2\n'
        '[[run]]\nid="a"\nmethod="dense"\n[profile.paper.defaults]\nseed=3\n'
    )
    assert list(read_suite(tmp_path / "other.toml")) == ["a"]
    row = read_suite(tmp_path / "other.toml", "paper")["a"]
    assert (row["steps"], row["limit"], row["seed"], row["guidance"]) == (7, 9, 3, 2)
    assert row["params"] == {"ratio": 0.5, "train": {"steps": 3, "lr": 0.2}}
    (tmp_path / "other.toml").write_text('extends="suit"\n')
    with pytest.raises(DipgoError, match="suit.toml: no such file"):
        read_suite(tmp_path / "other.toml")
