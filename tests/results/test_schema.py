from __future__ import annotations

import pytest

from qresearch.results import schema

ACCEPTED = {
    schema.number: [0, -1.5, 10**30],
    schema.not_negative: [0, 2.5],
    schema.integer: [0, -3],
    schema.text: ["a", "é: x̂ ± 1"],
    schema.lines: ["a", "a\nb\x1b"],
    schema.sha256: ["0" * 64],
    schema.utc_time: ["2026-01-31T12:00:00+00:00", "2026-01-31T12:00:00Z"],
    schema.null: [None],
    schema.json_value: [None, True, "", 1.5, [1, {"a": []}]],
    schema.number_tree: [1, {"a": {"b": 2.5}}],
    schema.one_of("a", 1): ["a", 1],
    schema.optional(schema.text): [None, "a"],
    schema.list_of(schema.integer): [[], [1, 2]],
    schema.mapping_of(schema.integer): [{}, {"a": 1}],
    schema.fields({"a": schema.integer}): [{"a": 1}],
    schema.fields({"a": schema.integer}, others=schema.text): [{"a": 1, "b": "c"}],
}
REFUSED = {
    schema.number: [True, None, "1", float("nan"), float("inf")],
    schema.not_negative: [-1, float("nan")],
    schema.integer: [1.0, True],
    schema.text: ["", 1, None, "a\n", "\x1b[2J", "\ud800"],
    schema.lines: ["", 1, None, "\ud800"],
    schema.sha256: ["0" * 63, "A" * 64, "0" * 64 + "\n", None],
    schema.utc_time: ["", 3, "2026-01-31", "2026-01-31T12:00:00+01:00"],
    schema.null: [0, ""],
    schema.json_value: [object(), (1,), {1: 2}, [float("nan")]],
    schema.number_tree: [[1], {"a": "b"}, {1: 2}],
    schema.one_of("a", 1): ["b", True, 1.0],
    schema.optional(schema.text): [""],
    schema.list_of(schema.integer): [(1,), [1.5], {}],
    schema.mapping_of(schema.integer): [[], {"a": "b"}, {1: 1}],
    schema.fields({"a": schema.integer}): [{}, [], {"a": 1, "b": 1}, {"a": "x"}, {1: 1}],
}


@pytest.mark.parametrize(("check", "value"), [(c, v) for c, values in ACCEPTED.items() for v in values])
def test_accepts(check, value):
    assert list(check("field", value)) == []


@pytest.mark.parametrize(("check", "value"), [(c, v) for c, values in REFUSED.items() for v in values])
def test_refuses_naming_the_field(check, value):
    problems = list(check("field", value))
    assert problems
    assert all(problem.startswith("field") and "\n" not in problem for problem in problems)


def test_every_check_is_tested():
    made = {check.__name__ for check in REFUSED} | {"check"}
    public = {name for name, item in vars(schema).items() if callable(item) and item.__module__ == schema.__name__}
    assert {n for n in public if n.islower() and not n.startswith("_")} - made <= {
        "one_of",
        "optional",
        "list_of",
        "mapping_of",
        "fields",
    }
