import pytest

from dipgo.errors import DipgoError
from dipgo.registry import Registry


def tools() -> Registry[int]:
    return Registry("tool", {"hammer": 1, "saw": 2, "plane": 3})


@pytest.mark.parametrize(
    "name, hint",
    [("hamer", "did you mean hammer?"), ("sawn", "did you mean saw?"), ("zzz", "known: hammer, plane, saw")],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name, hint):
    with pytest.raises(DipgoError, match=f"unknown tool '{name}'; ") as raised:
        tools()[name]
    assert hint in str(raised.value)


@pytest.mark.parametrize("name", [None, 3, ["hammer"]])
def test_a_name_that_is_no_text_is_unknown(name):
    assert name not in tools() and tools().get(name) is None
    with pytest.raises(DipgoError, match="unknown tool"):
        tools()[name]


@pytest.mark.parametrize(
    "add", [lambda r: r.__setitem__("saw", 9), lambda r: r.update(saw=9), lambda r: r.update([("saw", 9)])]
)
def test_a_taken_name_is_refused(add):
    registry = tools()
    with pytest.raises(DipgoError, match="there is a tool 'saw' already"):
        add(registry)
    assert registry["saw"] == 2


def test_two_first_entries_of_one_name_are_refused():
    with pytest.raises(DipgoError, match="already"):
        Registry("tool", [("saw", 1), ("saw", 2)])


def test_it_is_a_dict_otherwise(monkeypatch):
    registry = tools()
    monkeypatch.setitem(registry, "file", 4)
    assert list(registry) == ["hammer", "saw", "plane", "file"] and registry.get("file") == 4 and len(registry) == 4
    monkeypatch.undo()
    assert "file" not in registry and registry.get("file", 7) == 7 and list(registry.values()) == [1, 2, 3]
