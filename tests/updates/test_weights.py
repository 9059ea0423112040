"""Rules in files: what comes back, and what is said of files that cannot be read."""

import json
import struct

import pytest
import safetensors.torch
import torch

from metarl.updates import RULES, LearnedSGD, weights
from metarl.updates.base import Coordinatewise
from metarl.updates.weights import SavedRule, card, load_rule, read_rule, save_rule, shipped

PARAMS = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}
LEARNED = ("learned", "lstm", "lstm_meta_learner", "optim4rl")


class Scaled(Coordinatewise):
    """Small, for files whose every byte is tried."""

    def __init__(self, params, rate, power=1.0):
        super().__init__(params, rate)
        self.scale = torch.nn.Parameter(torch.tensor([1.5, -0.25]))
        self.power = power


@pytest.fixture(autouse=True)
def _a_rule_of_our_own(monkeypatch):
    monkeypatch.setitem(RULES, "scaled", Scaled)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "shipped")
    return weights.FOLDER


@pytest.fixture
def file(tmp_path):
    return save_rule(tmp_path / "a.safetensors", Scaled(PARAMS, 0.125), "scaled", {"power": 2.0})


def drawn(name, seed, **options):
    torch.manual_seed(seed)
    rule = RULES[name](PARAMS, 0.25, **options)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.normal_()
    return rule


# -- what comes back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
def test_a_rule_comes_back_whole(name, tmp_path):
    rule = drawn(name, 1)
    path = save_rule(tmp_path / "new" / "a.safetensors", rule, name)
    assert path == tmp_path / "new" / "a.safetensors"
    loaded = load_rule(path, PARAMS)
    assert type(loaded) is type(rule)
    assert loaded.state_dict().keys() == rule.state_dict().keys()
    assert all(torch.equal(value, rule.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.rate == 0.25
    assert load_rule(str(path), PARAMS, rate=3.0).rate == 3.0


@pytest.mark.parametrize("name", LEARNED)
def test_it_moves_other_parameters_as_before(name, tmp_path):
    rule = drawn(name, 2)
    other = {"w": torch.zeros(7, dtype=torch.float64)}
    twin = RULES[name](other, 0.25)
    twin.load_state_dict(rule.state_dict())
    loaded, twin = load_rule(save_rule(tmp_path / "a.safetensors", rule, name), other), twin.double()
    params, grads = torch.randn(1, 7).double(), torch.randn(1, 7).double()
    ours, theirs = (made.move(grads, made.start(params), params, None)[0] for made in (loaded, twin))
    assert ours.dtype == torch.float64
    assert torch.equal(ours, theirs)


def test_options_and_rate(file, tmp_path):
    saved = read_rule(file)
    assert (saved.name, saved.options, saved.rate) == ("scaled", {"power": 2.0}, 0.125)
    assert load_rule(file, PARAMS).power == 2.0
    again = save_rule(tmp_path / "b.safetensors", load_rule(file, PARAMS), "scaled", {"power": 1, "x": [None]}, rate=0.1)
    assert read_rule(again).options == {"power": 1, "x": [None]}
    assert read_rule(again).rate == 0.1


def test_metadata_are_those_of_safetensors(file):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["scale"]["shape"] == [2]
    metadata = header["__metadata__"]
    assert metadata.keys() == {"format", "rule", "options", "rate", "sha256"}
    assert metadata["rule"] == "scaled"
    assert json.loads(metadata["options"]) == {"power": 2.0}
    assert float(metadata["rate"]) == 0.125
    assert safetensors.torch.load(data)["scale"].tolist() == [1.5, -0.25]


def test_making_a_rule_leaves_the_random_generator_alone(tmp_path):
    path = save_rule(tmp_path / "a.safetensors", drawn("lstm", 3), "lstm")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_rule(path, PARAMS)
    assert torch.equal(torch.rand(3), expected)


def test_an_old_file_stays_when_writing_fails(file, monkeypatch):
    before = file.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_rule(file, Scaled(PARAMS, 1.0), "scaled")
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["a.safetensors"]


# -- what comes with the package ---------------------------------------------------------------------------------


def test_shipped_rules(folder):
    assert shipped() == []
    for name in ("second", "first"):
        save_rule(folder / f"{name}.safetensors", Scaled(PARAMS, 0.5), "scaled")
    (folder / "first.md").write_text("# first\n")
    assert shipped() == ["first", "second"]
    assert load_rule("second", PARAMS).rate == 0.5
    assert card("first") == "# first\n"


def test_every_rule_that_comes_with_the_package_has_a_card_and_can_be_made():
    for name in shipped():
        assert card(name).startswith("# ")
        assert load_rule(name, PARAMS).rate > 0
    assert {path.stem for path in weights.FOLDER.glob("*")} == {*shipped()}


def test_unknown_names(folder):
    with pytest.raises(ValueError, match=r"^weights 'x' is unknown: known are ; a file's name ends in .safetensors$"):
        load_rule("x", PARAMS)
    for name in ("mlp_rl", "lstm_small"):
        save_rule(folder / f"{name}.safetensors", Scaled(PARAMS, 0.5), "scaled")
    message = (
        r"^weights 'mlp-rl' is unknown \(did you mean mlp_rl\?\): known are lstm_small, mlp_rl; "
        r"a file's name ends in .safetensors$"
    )
    for function in (lambda name: load_rule(name, PARAMS), card):
        with pytest.raises(ValueError, match=message):
            function("mlp-rl")
    with pytest.raises(ValueError, match=r"^weights: there is no card .*mlp_rl.md$"):
        card("mlp_rl")


# -- files that cannot be read -----------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"^weights: there is no file .*gone.safetensors$"):
        load_rule(tmp_path / "gone.safetensors", PARAMS)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"^[^\n]*folder.safetensors is truncated, altered or not a safetensors file: "):
        load_rule(tmp_path / "folder.safetensors", PARAMS)


def test_every_truncated_file_is_refused(file):
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=r"^[^\n]*a.safetensors is truncated, altered or not a safetensors file: [^\n]*$"
        ):
            read_rule(file)


def test_no_altered_byte_changes_what_is_read(file):
    data, whole = file.read_bytes(), read_rule(file)
    refused = []
    for place in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            file.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            try:
                found = read_rule(file)
            except ValueError as error:
                refused.append(str(error))
            else:  # spaces between words of JSON, and names that fall to where they were
                assert (found.name, found.options, found.rate) == (whole.name, whole.options, whole.rate)
                assert torch.equal(found.weights["scale"], whole.weights["scale"])
    assert len(refused) > 2.5 * len(data)
    assert all(message.startswith(f"{file} ") and "\n" not in message for message in refused)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_another_kind(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(2)}, metadata))
    with pytest.raises(ValueError, match=r"model.safetensors holds no update rule: metarl's metadata are missing$"):
        read_rule(path)


def test_a_checkpoint_of_torch(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is truncated, altered or not a safetensors file: "):
        read_rule(tmp_path / "model.safetensors")


def forged(path, **changes):
    """The file with other metadata, and the hash that goes with them."""
    saved = read_rule(path)
    metadata = {"format": weights.FORMAT, "rule": saved.name, "options": json.dumps(saved.options), "rate": repr(saved.rate)}
    metadata |= changes
    metadata["sha256"] = weights._digest(metadata, saved.weights)
    path.write_bytes(safetensors.torch.save(saved.weights, metadata))
    return path


def test_a_later_format(file):
    with pytest.raises(ValueError, match="is of format 'metarl update rule 2', this version of metarl reads "):
        read_rule(forged(file, format="metarl update rule 2"))


def test_an_unknown_rule(file):
    message = r"a.safetensors: rule 'scale' is unknown \(did you mean scaled\?\): known are sgd, "
    with pytest.raises(ValueError, match=message):
        load_rule(forged(file, rule="scale"), PARAMS)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("scaled", {"wide": 3}, "got an unexpected keyword argument 'wide'"),
        ("learned", {"hidden": [0]}, "hidden must "),
        ("learned", {}, "Error.s. in loading state_dict for LearnedMLP: Missing key"),
    ],
)
def test_options_that_do_not_fit(file, name, options, reason):
    with pytest.raises(ValueError, match=rf"^[^\n]*a.safetensors: rule '{name}' does not fit: {reason}[^\n]*$"):
        load_rule(forged(file, rule=name, options=json.dumps(options)), PARAMS)


# -- what cannot be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a.pt"}, "path must end in .safetensors, got 'a.pt'"),
        ({"name": "learned"}, "name must be that of Scaled in RULES, got 'learned'"),
        ({"name": "none"}, "name must be that of Scaled in RULES, got 'none'"),
        ({"options": {"a": (1, 2)}}, r"options must be what JSON can hold without change, got {'a': \(1, 2\)}"),
        ({"options": {"a": float("nan")}}, "options must be what JSON can hold: .*"),
        ({"options": {"a": torch.zeros(1)}}, "options must be what JSON can hold: .*"),
        ({"rate": 0}, "rate must be above 0 and finite, got 0.0"),
        ({"rate": float("inf")}, "rate must be above 0 and finite, got inf"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{message}$"):
        save_rule(**({"path": "a.safetensors", "rule": Scaled(PARAMS, 0.5), "name": "scaled"} | changes))
    assert not any(tmp_path.iterdir())


def test_what_is_not_finite_is_not_written(tmp_path):
    rule = LearnedSGD(PARAMS, float("nan"))
    with pytest.raises(ValueError, match=r"^what the rule has learned must be finite, rate is not$"):
        save_rule(tmp_path / "a.safetensors", rule, "learned_sgd", rate=1.0)


def test_a_saved_rule_without_weights_is_as_it_is_made():
    assert SavedRule("scaled", {}, 0.5, {}).make(PARAMS).scale.tolist() == [1.5, -0.25]
