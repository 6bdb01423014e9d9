import pickle

from trimtab.controller.errors import Refused


def test_a_refusal_travels_between_processes_whole() -> None:
    refusal = Refused("stale-revision", "load it anew", {"revision": "3"}, {"revision": 4})
    again = pickle.loads(pickle.dumps(refusal))
    assert (again.code, again.message, again.fields, again.current) == (
        "stale-revision",
        "load it anew",
        {"revision": "3"},
        {"revision": 4},
    )
    assert str(again) == "load it anew"
