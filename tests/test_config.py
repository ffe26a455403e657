"""The configuration: precedence, typed values, errors that help, durable changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from retain.config import Config, ConfigError, describe, load_config, parse_yaml, read_file, save, set_value, workspace_file


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration file that does not exist yet; the default workspace is below the same folder."""
    path = tmp_path / "user" / "config.yaml"
    path.parent.mkdir()
    monkeypatch.setenv("RETAIN_CONFIG", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return path


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_defaults_are_valid_and_every_key_is_explained(user: Path) -> None:
    config = load_config()
    assert config == Config()
    assert (config.model.name, config.learn.rank, config.learn.learning_rate) == ("smollm2-135m-instruct", 16, 1e-3)
    assert (config.retention.methods, config.retention.ewc.strength) == ([], 1000.0)
    assert all(row.help and row.source == "default" and row.value is not ... for row in describe(config))
    assert len({row.key for row in describe(config)}) == len(describe(config)) > 45


def test_each_layer_overrides_the_one_below(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "work"
    keys = ("epochs", "rank", "seed", "clip", "warmup")  # the last key is set by every layer, the one before by all but the highest, ...
    written(user, "learn: {epochs: 2, rank: 2, seed: 2, clip: 2}")
    written(workspace_file(place), "learn: {rank: 3, seed: 3, clip: 3}")
    monkeypatch.setenv("RETAIN_LEARN__SEED", "4")
    monkeypatch.setenv("RETAIN_LEARN__CLIP", "4")
    config = load_config(workspace=place, overrides={"learn.clip": 5, "learn.importance": None})
    assert [getattr(config.learn, key) for key in keys] == [2, 3, 4, 5, 0.05]
    source = {row.key: row.source for row in describe(config)}
    assert [source[f"learn.{key}"] for key in keys] == [str(user), str(workspace_file(place)), "environment", "command line", "default"]
    assert source["workspace"] == "command line" and source["learn.importance"] == "default"


def test_the_workspace_can_come_from_the_user_file_or_the_environment(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(user, f"workspace: {tmp_path}/a")
    written(tmp_path / "a" / "config.yaml", "learn: {rank: 3}")
    written(tmp_path / "b" / "config.yaml", "learn: {rank: 5}")
    assert (load_config().learn.rank, load_config().workspace) == (3, tmp_path / "a")
    monkeypatch.setenv("RETAIN_WORKSPACE", str(tmp_path / "b"))
    assert (load_config().learn.rank, load_config().workspace) == (5, tmp_path / "b")
    written(tmp_path / "b" / "config.yaml", "workspace: elsewhere")
    with pytest.raises(ConfigError, match=r"b/config\.yaml: workspace: cannot be set in a workspace's own file"):
        load_config()


def test_numbers_are_numbers(user: Path) -> None:
    values = parse_yaml("[2e-4, 1E3, -.5e+1, 1.e2, 0x10, 3, 1.5, '2e-4', e4, 2e]")
    assert values == [2e-4, 1000.0, -5.0, 100.0, 16, 3, 1.5, "2e-4", "e4", "2e"]
    assert [type(value) for value in values[:4]] == [float] * 4
    written(user, "learn: {learning_rate: 2e-4}")
    assert load_config().learn.learning_rate == 2e-4
    assert load_config(overrides={"learn.learning_rate": "3e-5"}).learn.learning_rate == 3e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learn: {lerning_rate: 1}", "learn.lerning_rate: unknown key; did you mean learn.learning_rate?"),
        ("lern: {rank: 1}", "lern: unknown key; did you mean learn?"),
        ("rank: 8", "rank: unknown key; did you mean learn.rank or packnet.rank?"),
        ("retention: {replay: {capcity: 5}}", "retention.replay.capcity: unknown key; did you mean retention.replay.capacity?"),
        ("learn: {zzzzzzzz: 1}", "learn.zzzzzzzz: unknown key"),
        ("learn: {rank: 0}", "learn.rank: must be greater than or equal to 1, not 0"),
        ("learn: {rank: two}", "learn.rank: must be a valid integer"),
        ("learn: {learning_rate: .nan}", "learn.learning_rate: must be a finite number"),
        (
            "learn: {layers: some}",
            "learn.layers: must be 'all', 'last-two-thirds', 'last-half', 'last-third' or 'last-quarter' or must be a valid integer",
        ),
        ("retention: {ewc: {lambda: -1}}", "retention.ewc.lambda: must be greater than or equal to 0, not -1"),
        ("model: {device: gpu}", "model.device: must be 'auto', 'cpu', 'cuda' or 'mps', not 'gpu'"),
        ("learn: 5", "learn: must hold `key: value` entries"),
        ("- a", "must hold sections"),
        ("learn: {rank: 1, rank: 2}", "not valid YAML: the key rank is given twice"),
        ("learn: [", "not valid YAML"),
        ("learn: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
    ],
)
def test_errors_are_one_line_and_name_the_file_and_the_key(user: Path, text: str, message: str) -> None:
    written(user, text)
    with pytest.raises(ConfigError) as error:
        load_config()
    assert str(error.value).startswith(f"{user}: {message}") and "\n" not in str(error.value)


def test_errors_name_the_environment_variable_and_the_command_line(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^command line: gate\.max_forgeting: unknown key; did you mean gate\.max_forgetting\?$"):
        load_config(overrides={"gate.max_forgeting": 1})
    with pytest.raises(ConfigError, match=r"^command line: learn: must hold"):
        load_config(overrides={"learn": "5"})
    monkeypatch.setenv("RETAIN_LEARN__RANKS", "8")
    with pytest.raises(
        ConfigError, match=r"^environment variable RETAIN_LEARN__RANKS: learn\.ranks: unknown key; did you mean learn\.rank\?$"
    ):
        load_config()


def test_text_from_the_environment_becomes_typed(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "RETAIN_CACHE": "/somewhere",  # not a setting
        "RETAIN_RETENTION__METHODS": "replay, ewc",
        "RETAIN_RETENTION__EWC__LAMBDA": "2e2",
        "RETAIN_GENERATE__RETRIEVAL": "false",
        "RETAIN_LEARN__LAYERS": "6",
        "RETAIN_LEARN__DOMAIN": "123",
        "RETAIN_MODEL__THREADS": "null",
        "RETAIN_MODEL__NAME": "org/model: a",
    }.items():
        monkeypatch.setenv(name, text)
    config = load_config()
    assert config.retention.methods == ["replay", "ewc"] and config.retention.ewc.strength == 200.0
    assert config.generate.retrieval is False and config.learn.layers == 6 and config.learn.domain == "123"
    assert config.model.threads is None and config.model.name == "org/model: a"


def test_empty_files_and_sections_mean_defaults(user: Path) -> None:
    for text in ("", "# nothing\n", "learn:\n  # rank: 4\nretention:\n  replay:\n"):
        written(user, text)
        assert load_config() == Config()


def test_set_value_keeps_the_rest_and_refuses_what_is_wrong(user: Path) -> None:
    set_value(user, "learn.rank", "8")
    set_value(user, "learn.learning_rate", "2e-4")
    set_value(user, "retention.methods", "replay,olora")
    set_value(user, "model.threads", "null")
    assert read_file(user) == {
        "learn": {"rank": 8, "learning_rate": 2e-4},
        "retention": {"methods": ["replay", "olora"]},
        "model": {"threads": None},
    }
    before = user.read_bytes()
    for key, value in (("learn.rank", "none"), ("learn.rnak", "3")):
        with pytest.raises(ConfigError):
            set_value(user, key, value)
    assert user.read_bytes() == before
    assert [path.name for path in user.parent.iterdir()] == [user.name]


def test_a_failed_write_leaves_the_old_file(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_value(user, "learn.rank", 8)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        set_value(user, "learn.rank", 9)
    monkeypatch.undo()
    assert read_file(user) == {"learn": {"rank": 8}}
    assert [path.name for path in user.parent.iterdir()] == [user.name]


def test_saved_and_loaded_is_the_same(user: Path) -> None:
    config = load_config(overrides={"learn.learning_rate": 2e-4, "retention.ewc.lambda": 10})
    config.learn.epochs = 3
    config.model.cache_dir = Path("~/models")
    with pytest.raises(ValueError, match="rank"):
        config.learn.rank = 0
    save(config, user)
    assert read_file(user)["learn"] == {"learning_rate": 2e-4, "epochs": 3}  # defaults are left out
    again = load_config()
    assert again == config and again.model.cache_dir == Path.home() / "models"
    assert {row.source for row in describe(config) if row.key == "learn.epochs"} == {"program"}


def test_an_unreadable_file_is_an_error(user: Path) -> None:
    user.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config()
