"""Bad input to every command: one clear line that names the thing, a non-zero exit, nothing lost, nothing half-written.

Each case is (what is wrong, the command, words of the line). `{suite}` is a small suite of the zoo's model; a case may
change its text first. The files that were there are there afterwards, and no other.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import benchmarks.__main__
import dipgo.__main__
import tables.__main__
from benchmarks.__main__ import SOME_ROWS_ABSENT
from benchmarks.specs import record
from tests.helpers.suites import DEFAULTS

SUITE = (
    DEFAULTS
    + """\
prompts = ["held-out"]
limit = 4
metrics = ["macs"]
[method.dipgo.train]
steps = 2
[[run]]
id = "dense"
[[run]]
id = "half"
method = "step_skip"
params = { mode = "hold", interval = 2 }
[[run]]
id = "ours"
method = "dipgo"
params = { ratio = 0.5 }
"""
)
COMMANDS = {"benchmarks": benchmarks.__main__.main, "dipgo": dipgo.__main__.main, "tables": tables.__main__.main}
PUBLISHED = tables.__main__.HERE / "records"

RUN = "benchmarks run {suite} --row half"
SUITES = [
    ("no such suite", "benchmarks run tabel1", "unknown suite 'tabel1'; did you mean table1"),
    ("no such file", "benchmarks run nowhere.toml", "nowhere.toml: no such file"),
    ("a folder", "benchmarks run {folder}.toml", "no such file"),
    ("no such row", "benchmarks run {suite} --row haff", "unknown row 'haff'; did you mean half"),
    ("no workers", RUN + " --workers 0", "--workers is 0; it must be at least 1"),
    ("a negative batch", RUN + " --batch -3", "--batch is -3; it must be at least 1"),
    ("a batch of words", RUN + " --batch many", "invalid int value: 'many'"),
    ("no pictures", RUN + " --limit 0", "limit is 0; it must be an integer of at least 1"),
    ("no such profile", RUN + " --profile papre", "unknown profile 'papre'; did you mean paper"),
    ("a profile that the suite lacks", RUN + " --profile paper", "this suite has no such profile"),
    ("weights of such a profile", RUN + " --random-weights", "this suite has no such profile"),
    ("no such option", RUN + " --fersh", "unrecognized arguments: --fersh"),
    ("no such command", "benchmarks rnu table1", "invalid choice: 'rnu'"),
    ("no command", "benchmarks", "the following arguments are required: command"),
    ("a setting without a value", RUN + " --set steps", "--set steps: give it as FIELD=VALUE"),
    ("no such field", RUN + " --set stepps=4", "unknown field 'stepps'; did you mean steps"),
    ("a field that is not set", RUN + " --set params.intervall=4", "no run has the field 'params.intervall'"),
    ("a field that follows from others", RUN + " --set revision=1", "unknown field 'revision'"),
    ("steps in words", RUN + " --set steps=four", "steps is 'four'; it must be an integer of at least 1"),
    ("no steps", RUN + " --set steps=0", "steps is 0; it must be an integer of at least 1"),
    ("half a step", RUN + " --set steps=2.5", "steps is 2.5; it must be an integer"),
    ("a negative seed", RUN + " --set seed=-1", "seed is -1; it must be an integer of at least 0"),
    ("endless guidance", RUN + " --set guidance=inf", "guidance is inf; it must be a finite number"),
    ("no such scheduler", RUN + " --set scheduler=ddmi", "unknown scheduler 'ddmi'; did you mean ddim"),
    ("no such model", RUN + " --set model=emoji-ds", "unknown model 'emoji-ds'; did you mean emoji-sd"),
    ("no such dtype", RUN + " --set dtype=float61", "unknown dtype 'float61'; did you mean float16"),
    ("no such method", RUN + " --set method=step_skp", "unknown method 'step_skp'; did you mean step_skip"),
    ("no such protocol", RUN + " --set protocol=papre", "unknown protocol 'papre'; did you mean paper"),
    ("prompts that are no list", RUN + " --set prompts=seen", "prompts is 'seen'; it must be a list of strings"),
    ("no such prompts", RUN + ' --set prompts=["heldout"]', "unknown prompt set 'heldout'; did you mean held-out"),
    ("no such metric", RUN + ' --set metrics=["clip_scor"]', "unknown metric 'clip_scor'; did you mean clip_score"),
    ("no such distance", RUN + ' --set metrics=["fid_efflite"]', "unknown metric 'fid_efflite'"),
    ("real pictures that are not there", RUN + ' --set metrics=["fid_paper"]', "real pictures are not there in"),
    ("a record folder that is a file", RUN + " --records {file}", "file.txt is no folder"),
    ("a workspace that is a file", RUN + " --workspace {file}", "file.txt is no folder"),
    ("a dry run of no such row", "benchmarks run {suite} --dry-run --row haff", "unknown row 'haff'"),
]
ROWS = [
    ("no such mode", RUN + " --set params.mode=held", "unknown step_skip mode 'held'; did you mean hold"),
    ("too long an interval", RUN + " --set params.interval=9", "interval is 9; it must lie between 1 and 4"),
    ("a ratio above 1", "benchmarks run {suite} --row ours --set params.ratio=1.5", "between 0 and 1"),
]
TEXTS = [
    ("no TOML", ("[defaults]", "[defaults"), "suite.toml: "),
    ("no such table", ("[defaults]", "[default]"), "unknown table 'default'; did you mean defaults"),
    ("a field twice", ("steps = 4", "steps = 4\nsteps = 5"), "suite.toml: "),
    ("a run twice", ('id = "half"', 'id = "dense"'), "two runs have the id 'dense'"),
    ("a run without a name", ('id = "half"\n', ""), "(no id)"),
    ("a name that names no file", ('id = "half"', 'id = "a/b"'), "letters, digits"),
    ("a missing field", ("seed = 0\n", ""), "field 'seed' is missing; add it"),
    ("an unknown field", ("seed = 0", "sead = 0"), "unknown field 'sead'; did you mean seed"),
    ("a reference that is no run", ('reference = "dense"', 'reference = "denze"'), "did you mean dense"),
    ("params that are no table", ("params = { ratio = 0.5 }", "params = 3"), "params is 3; it must be a table"),
    ("settings of a method that no run uses", ("[method.dipgo.", "[method.dipgoo."), "did you mean dipgo"),
    (
        "an unknown training setting",
        ("[method.dipgo.train]\n", "[method.dipgo.train]\nalfa = 1\n"),
        "did you mean alpha",
    ),
]
OTHERS = [
    ("no such table to examine", "benchmarks doctor --table 9", "unknown suite 'table9'; did you mean table"),
    ("no table to examine", "benchmarks doctor", "the following arguments are required: --table"),
    ("no such profile to examine", "benchmarks doctor --table 1 --profile papr", "did you mean paper"),
    ("no such asset", "benchmarks fetch sd51", "unknown asset 'sd51'; did you mean sd21 or sd15"),
    ("nothing to fetch", "benchmarks fetch", "the following arguments are required: NAME"),
    (
        "no such model to count",
        "benchmarks macs --model sd51",
        "unknown model of the paper 'sd51'; did you mean sd21 or sd15",
    ),
    ("a schedule of no model", "benchmarks macs --schedule x.json", "name its --model"),
    ("no such schedule", "benchmarks macs --model dit-xl-2 --schedule {folder}/x.json", "x.json"),
    ("a schedule that is none", "benchmarks macs --model dit-xl-2 --schedule {file}", "not a schedule"),
    ("no steps to count", "benchmarks macs --model dit-xl-2 --steps 0", "steps is 0"),
    ("no such table to render", "tables render tabel1", "unknown table 'tabel1'; did you mean table1"),
    ("no such profile to render", "tables render table1 --profile papr", "invalid choice: 'papr'"),
    ("no records of a profile", "tables render table1 --profile paper --records {folder}", "no record of table1"),
    ("half a record", "tables render table1 --records {broken}", "not a whole record"),
    ("a changed record", "tables render table1 --records {changed}", "its spec hashes to"),
    ("tables into a file", "tables render table8 --records {records} --out {file}", "file.txt"),
    ("stale tables", "tables render table8 --check --out {folder}", "table8.md: missing; run `python -m tables render"),
    ("no such gates", "dipgo import-released {folder}/x.pkl {released}", "x.pkl"),
    ("gates that are text", "dipgo import-released {file} {released}", "file.txt"),
    ("gates that run code", "dipgo import-released {hostile} {released}", "hostile.pkl"),
    ("gates of no such model", "dipgo import-released {file} --model sd51 --scheduler ddim -o s.json", "'sd51'"),
]
CASES = [(title, None, command, words) for title, command, words in SUITES + OTHERS]
CASES += [(title, change, "benchmarks run {suite}", words) for title, change, words in TEXTS]


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit(99)",)


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("DIPGO_ASSETS", str(tmp_path / "assets"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("not what was asked for")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps([Hostile()]))
    one = next(PUBLISHED.glob("plms-50-*.json"))
    for name, text in {
        "broken": one.read_text("utf-8")[:1000],
        "changed": one.read_text("utf-8").replace('"steps": 50', '"steps": 49'),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / one.name).write_text(text, "utf-8")
    places = {name: str(tmp_path / name) for name in ("broken", "changed")}
    return places | {
        "suite": str(tmp_path / "suite.toml"),
        "folder": str(tmp_path),
        "file": str(tmp_path / "file.txt"),
        "hostile": str(tmp_path / "hostile.pkl"),
        "records": str(PUBLISHED),
        "released": f"--model sd15 --scheduler ddim -o {tmp_path / 'schedule.json'}",
    }


def files(folder: Path) -> dict[str, bytes]:
    """All files but the locks of runs, which are empty."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.suffix != ".lock"}


@pytest.mark.parametrize(("change", "command", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_clear_line(places, tmp_path, capsys, caplog, change, command, words):
    (tmp_path / "suite.toml").write_text(SUITE.replace(*change) if change else SUITE)
    package, *arguments = command.format(**places).split()
    if arguments[:1] == ["run"]:
        for option in ("--workspace", "--records"):
            arguments += [] if option in arguments else [option, str(tmp_path / option[2:])]
        arguments += ["--workers", "1"] if "--workers" not in arguments else []
    before = files(tmp_path)
    try:
        status = COMMANDS[package](arguments)
    except SystemExit as exit:
        status = exit.code
    said = [*capsys.readouterr().err.splitlines(), *(entry.getMessage() for entry in caplog.records)]
    said = [line for line in said if words in line]
    assert status not in (0, None) and said, (status, said)
    assert len({line[line.index(words) :] for line in said}) == 1
    assert files(tmp_path) == before


@pytest.mark.parametrize(("command", "words"), [case[1:] for case in ROWS], ids=[case[0] for case in ROWS])
def test_bad_params_cost_their_own_rows_only_which_say_why(places, tmp_path, capsys, command, words):
    (tmp_path / "suite.toml").write_text(SUITE)
    folders = ["--workspace", str(tmp_path / "runs"), "--records", str(tmp_path / "records"), "--workers", "1"]
    assert COMMANDS["benchmarks"](command.format(**places).split()[1:] + folders) == SOME_ROWS_ABSENT
    name = command.split("--row ")[1].split()[0]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"error: {name}: ")]
    assert len(said) == 1 and words in said[0]
    found = record.find(tmp_path / "records", name)
    assert words in found.absent["macs"] and not found.metrics and not (tmp_path / "runs" / found.digest).exists()


def test_there_are_enough_of_them():
    assert len(CASES + ROWS) >= 60 and len({title for title, *_ in CASES}) == len(CASES)
