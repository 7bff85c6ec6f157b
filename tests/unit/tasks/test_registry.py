"""offload.yaml: merged by one rule a section, and every fault has its place and the nearest name."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema_rs
import pytest
import yaml

from api.embedded.discover import simulated
from tasks.categories import DEFAULT_CATEGORIES
from tasks.config import config_path, config_schema, load_registry, parse, says_servers
from tasks.errors import ConfigError
from tasks.registry import DEFAULT_CLASSES, Registry, Serve, nearest
from tasks.settings import Settings

TWO = """\
providers:
  - {name: gpu1, kind: ollama, url: "http://10.0.0.1:11434", reach: lan}
  - {name: gpu2, kind: openai, url: "http://10.0.0.2:8000/v1", reach: lan, in_flight: 64, api_key_env: KEY}
"""
SHARED = (
    TWO
    + """
classes:
  small:
    serve:
      - {provider: gpu1, model: "gemma3:4b"}
      - {provider: gpu2, model: "gemma3:4b"}
      - {provider: gpu2, model: "qwen3:4b", context: 8192}
  mine:
    serve:
      - {provider: gpu1, model: "big:70b"}
    options: {num_ctx: 32768}
    think: true
    dimensions: 8
    timeouts: {total: 30}
categories:
  triage: {class: mine, json: true}
  summarize: {attempts: 5}
"""
)


def read(text: str) -> Registry:
    return parse(dedent(text), "offload.yaml")


def test_nothing_said_means_the_defaults() -> None:
    """An empty file is the built-in configuration: an Ollama here, its classes and an empty cloud, every category."""
    registry = read("")
    assert set(registry.classes) == {"small", "coder", "reason", "embed", "cloud"}
    assert dict(registry.categories) == DEFAULT_CATEGORIES
    assert registry.providers["ollama"].url == "http://127.0.0.1:11434"
    assert registry.classes_of("ollama") == ("small", "coder", "reason", "embed")


def test_providers_replace_the_default_one() -> None:
    """With providers of its own a file has no Ollama here, and default classes keep only servers that exist."""
    registry = read(TWO)
    assert set(registry.providers) == {"gpu1", "gpu2"}
    assert all(not c.serve for c in registry.classes.values())
    kept = read("providers:\n  - {name: ollama, kind: ollama, url: 'http://lan:1'}")
    assert kept.classes["small"].serve == DEFAULT_CLASSES["small"].serve


def test_classes_and_categories_add_and_override_by_field() -> None:
    """What a file does not say of a built-in class or category stays as it is."""
    registry = read(SHARED)
    assert registry.classes["small"].think is False
    assert registry.classes["small"].options == {"num_ctx": 8192}
    assert len(registry.classes["small"].serve) == 3
    assert registry.classes["coder"].serve == ()
    assert registry.categories["triage"].json is True
    assert registry.categories["summarize"].attempts == 5
    assert registry.categories["summarize"].check == DEFAULT_CATEGORIES["summarize"].check
    assert registry.classes["mine"].timeouts.total == 30
    assert registry.classes["mine"].timeouts.connect == 5


def test_a_gguf_file_alone_is_a_whole_pool() -> None:
    """One model file, named after itself, serves every class as many calls at once as it has slots."""
    registry = read("providers:\n  - {kind: gguf, path: /models/tiny-1b.Q4.gguf, slots: 2, context: 2048}")
    provider = registry.providers["tiny-1b.Q4"]
    assert provider.in_flight == 2
    for name, model_class in registry.classes.items():
        assert model_class.serve == (Serve(provider="tiny-1b.Q4", model="tiny-1b.Q4", context=2048),), name


def test_a_gguf_file_serves_only_what_classes_say() -> None:
    """A file that names classes is taken at its word."""
    registry = read("""
        providers:
          - {kind: gguf, path: /m/tiny.gguf}
        classes:
          small: {serve: [{provider: tiny, model: tiny}]}
    """)
    assert registry.classes_of("tiny") == ("small",)


@pytest.mark.parametrize(
    ("category", "model", "goes_to"),
    [
        ("summarize", None, "small"),
        ("triage", "big:70b", "mine"),
        pytest.param("summarize", "big:70b", "mine", id="another class runs it whole"),
        pytest.param("triage", "gemma3:4b", "small", id="every provider of small has it"),
        pytest.param("summarize", "qwen3:4b", None, id="one provider of small has it not"),
        ("summarize", "no-such-model", None),
    ],
)
def test_a_pinned_model_goes_to_a_class_all_of_whose_providers_run_it(
    category: str, model: str | None, goes_to: str | None
) -> None:
    """Any worker of the class may claim the job, so each must have the model."""
    registry = read(SHARED)
    assert registry.class_for(registry.categories[category], model) == goes_to


def test_what_a_provider_runs_for_a_class() -> None:
    """The first model it has for the class, or the one that was pinned, or nothing."""
    registry = read(SHARED)
    assert registry.serve("small", "gpu2") == Serve(provider="gpu2", model="gemma3:4b")
    assert registry.serve("small", "gpu2", "qwen3:4b") == Serve(provider="gpu2", model="qwen3:4b", context=8192)
    assert registry.serve("small", "gpu1", "qwen3:4b") is None
    assert registry.serve("mine", "gpu2") is None
    assert registry.serve("nothing", "gpu2") is None
    assert registry.models == {"gemma3:4b", "qwen3:4b", "big:70b"}


def test_context_is_the_models_own_then_the_classs_then_the_default() -> None:
    """The nearest word on how many tokens fit counts."""
    registry = read(SHARED)
    small, mine = registry.classes["small"], registry.classes["mine"]
    assert [small.context(s) for s in small.serve] == [8192, 8192, 8192]
    assert mine.context(mine.serve[0]) == 32768
    assert mine.context(mine.serve[0].model_copy(update={"context": 4096})) == 4096
    assert mine.model_copy(update={"options": {}}).context(mine.serve[0]) == 8192


FAULTS = {
    "a misspelt section": ("provders: []", "1: provders: unknown key (did you mean 'providers'?)"),
    "a misspelt key": (
        TWO + "  - {name: x, kidn: ollama, url: 'http://x'}",
        "4: providers.2.kidn: unknown key (did you mean 'kind'?)",
    ),
    "a kind there is not": (
        "providers:\n  - name: a\n    url: http://x\n    kind: olama",
        "4: providers.0.kind: Input should be 'ollama', 'openai', 'gguf', 'anthropic' or 'command'",
    ),
    "a number out of bounds": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://x', in_flight: 0}",
        "2: providers.0.in_flight: Input should be greater than or equal to 1",
    ),
    "a URL that is none": (
        "providers:\n  - {name: a, kind: ollama, url: 'x:1'}",
        "2: providers.0.url: String should match pattern",
    ),
    "a name that is none": (
        "providers:\n  - {name: a/b, kind: ollama, url: 'http://x'}",
        "2: providers.0.name: String should match pattern",
    ),
    "a command that is one text": (
        "providers:\n  - name: a\n    kind: ollama\n    url: http://x\n    stop: systemctl stop ollama",
        "5: providers.0.stop: Input should be a valid tuple",
    ),
    "a server that is none of ours to start": (
        "providers:\n  - {name: a, kind: anthropic, start: [x]}",
        "2: providers.0: Value error, start: a provider of kind anthropic and reach cloud has no server on a node",
    ),
    "no url": ("providers:\n  - {name: a, kind: ollama}", "2: providers.0: Value error, a provider of kind ollama"),
    "no path": (
        "providers:\n  - {name: a, kind: gguf}",
        "2: providers.0: Value error, a provider of kind gguf has a path",
    ),
    "a path too many": (
        "providers:\n  - {name: a, kind: openai, url: 'http://x', path: /x}",
        "2: providers.0: Value error, a provider of kind openai has a url and no path",
    ),
    "a password in the url": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://jo:word@127.0.0.1'}",
        "2: providers.0.url: Value error, holds a name or a password; a key comes from the environment",
    ),
    "where a server listens": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://0.0.0.0:11434'}",
        "2: providers.0.url: Value error, 0.0.0.0 is where a server listens",
    ),
    "a public address declared lan": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://8.8.8.8', reach: lan}",
        "2: providers.0: Value error, its address has reach cloud, and it is declared lan",
    ),
    "a lan address declared nothing": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://192.168.1.5:11434'}",
        "2: providers.0: Value error, its address has reach lan, and it is declared local; say reach: lan",
    ),
    "a class of two reaches": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://127.0.0.1'}\n"
        "  - {name: b, kind: ollama, url: 'http://10.0.0.1', reach: lan}\n"
        "classes:\n  small:\n    serve: [{provider: a, model: m}, {provider: b, model: m}]",
        "6: classes.small.serve.1.provider: b is lan and a is local; a class is of one reach",
    ),
    "a cloud that is none": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://127.0.0.1'}\n"
        "classes:\n  cloud: {serve: [{provider: a, model: m}]}",
        "4: classes.cloud.serve.0.provider: class cloud is served by providers of reach cloud only",
    ),
    "a model that runs elsewhere": (
        "providers:\n  - {name: a, kind: openai, url: 'http://127.0.0.1/v1'}\n"
        "classes:\n  small: {serve: [{provider: a, model: 'gpt-oss:120b-cloud'}]}",
        "4: classes.small.serve.0.model: runs on somebody else's machine",
    ),
    "a model without its price": (
        "providers:\n  - name: c\n    kind: anthropic\n    limits: [{unit: usd, per: day, most: 1}]\n"
        "    prices: {a: {usd: {request: 1}}}\nclasses:\n  cloud: {serve: [{provider: c, model: b}]}",
        "7: classes.cloud.serve.0.model: provider c has a limit of usd, and no price of it for b",
    ),
    "a marker of nothing": ("privacy: {markers: {' ': lan_ok}}", "1: privacy.markers. .[key]: Value error, a marker"),
    "a root of everything, full-width": (
        "privacy: {roots: {／: lan_ok}}",
        "1: privacy.roots.／.[key]: Value error, names no folder",
    ),
    "a root of everything": ("privacy: {roots: {/: lan_ok}}", "1: privacy.roots./.[key]: Value error, names no folder"),
    "an address where its variable belongs": (
        "notify:\n  webhook_env: https://hooks.example/secret",
        "2: notify.webhook_env: Value error, expected the name of an environment variable, which holds the address",
    ),
    "an address at a key that is not there": (
        "notify:\n  webhook: https://hooks.example/secret",
        "2: notify.webhook: unknown key (did you mean 'webhook_env'?)",
    ),
    "an address among variables": (
        "notify:\n  apprise_env:\n    - TEAM\n    - slack://secret",
        "4: notify.apprise_env.1: Value error, expected the name",
    ),
    "a quiet time of less than nothing": ("notify: {quiet_s: -1}", "1: notify.quiet_s: Input should be greater"),
    "two of one name": (
        TWO + "  - {name: gpu1, kind: ollama, url: 'http://x'}",
        "4: providers.2.name: two providers are named 'gpu1'",
    ),
    "a misspelt key of a class": (
        "classes:\n  small:\n    sevre: []",
        "3: classes.small.sevre: unknown key (did you mean 'serve'?)",
    ),
    "a misspelt key inside a class": (
        "classes:\n  small:\n    serve:\n      - provider: ollama\n        modle: x",
        "5: classes.small.serve.0.modle: unknown key (did you mean 'model'?)",
    ),
    "a misspelt timeout": (
        "classes:\n  small:\n    timeouts:\n      totl: 1",
        "4: classes.small.timeouts.totl: unknown key (did you mean 'total'?)",
    ),
    "models of one class that hold different prompts": (
        TWO + "classes:\n  mine:\n    serve:\n      - {provider: gpu2, model: a, context: 1024}\n"
        "      - {provider: gpu2, model: b, context: 4096}",
        "8: classes.mine.serve.1.context: models of one class stand in for each other: "
        "give all the same context, or two classes",
    ),
    "an Ollama model with a context that is not what is sent": (
        TWO + "classes:\n  mine:\n    options: {num_ctx: 4096}\n    serve: [{provider: gpu1, model: a, context: 8192}]",
        "7: classes.mine.serve.0.context: an Ollama model gets the class's num_ctx, which is 4096",
    ),
    "a context that is no number": (
        "classes:\n  small:\n    options: {num_ctx: abc}",
        "2: classes.small: Value error, options.num_ctx is a whole number of tokens, 256 to 2147483647",
    ),
    "an option that no server could take": (
        "classes:\n  small:\n    options: {temperature: .inf}",
        "3: classes.small.options.temperature: Value error, is no number a server could take",
    ),
    "a port there is not": (
        "providers:\n  - {name: a, kind: ollama, url: 'http://h:99999'}",
        "2: providers.0.url: Value error, expected http://HOST or http://HOST:PORT, with a port of 1 to 65535",
    ),
    **{
        f"no base URL, {url}": (
            f'providers:\n  - {{name: a, kind: ollama, url: "{url}"}}',
            "2: providers.0.url: Value error, expected",
        )
        for url in (
            "http://:80",
            "http://h:0",
            "http://a b",
            "http://a\\nb",
            "http://..",
            "http://[zz]",
            "http://h/v1?x=1",
        )
    },
    "a context no server could hold": (
        f"classes:\n  small:\n    options: {{num_ctx: {2**31}}}",
        "2: classes.small: Value error, options.num_ctx is a whole number of tokens, 256 to",
    ),
    "a number beyond any": (
        f"classes:\n  small:\n    options: {{seed: {10**400}}}",
        "3: classes.small.options.seed: Value error, is no number a server could take",
    ),
    "an option that is a list": (
        "classes:\n  small:\n    options: {stop: [a]}",
        "3: classes.small.options.stop: Value error, expected true, false, a number or a text",
    ),
    "a time without an end": (
        "classes:\n  small:\n    timeouts: {total: .inf}",
        "3: classes.small.timeouts.total: Input should be a finite number",
    ),
    "a size no embedding has": (
        "classes:\n  embed:\n    dimensions: 65537",
        "3: classes.embed.dimensions: Input should",
    ),
    "a key twice": ("classes:\n  small: {}\n  coder: {}\n  small: {}", "4: small: stands here twice"),
    "another name than its key": (
        "classes:\n  small:\n    name: large",
        "3: classes.small.name: its name is 'small', the key it stands under",
    ),
    "a provider there is not": (
        TWO + "classes:\n  small:\n    serve:\n      - provider: gpu3\n        model: x",
        "7: classes.small.serve.0.provider: no provider is named 'gpu3' (did you mean 'gpu2'?)",
    ),
    "a class there is not": (
        "categories:\n  triage:\n    class: smal",
        "3: categories.triage.class: no class is named 'smal' (did you mean 'small'?)",
    ),
    "a misspelt key of a category": (
        "categories:\n  triage:\n    clas: small",
        "3: categories.triage.clas: unknown key (did you mean 'class'?)",
    ),
    "our word for a class": (
        "categories:\n  chat:\n    model_class: coder",
        "3: categories.chat.model_class: unknown key (did you mean 'class'?)",
    ),
    "a check there is not": (
        "categories:\n  chat:\n    check: sumary",
        "3: categories.chat.check: Value error, no such check; there are ",
    ),
    "a section that is no mapping": ("classes: [1]", "1: classes: Input should be a valid dictionary"),
    "a class that is no mapping": ("classes:\n  small: 7", "2: classes.small: Input should be a valid dictionary"),
    "no mapping at all": ("- 1\n- 2", "1: expected a mapping with providers, classes, categories"),
    "no YAML": ("providers: [1,\n  b: }", "2: not YAML: "),
    "a tab": ("a:\n\tb: 1", "2: not YAML: "),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_has_its_place_and_the_nearest_name(text: str, message: str) -> None:
    """file:line: field: reason."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "offload.yaml")
    assert str(caught.value).startswith(f"offload.yaml:{message}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: 2020-13-45", "[" * 5000, "\x00", "? [a]\n: b", "a: &a [*a]", "!!python/none x"])
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever the file holds, its fault is a ConfigError that names the file."""
    with pytest.raises(ConfigError, match=r"^offload\.yaml"):
        parse(text, "offload.yaml")


def test_all_faults_of_the_file_are_told_at_once() -> None:
    """Several wrong providers are one message, a line each."""
    with pytest.raises(ConfigError) as caught:
        read("providers:\n  - {name: a, kind: x, url: 'http://x'}\n  - {name: b, kind: y, url: 'http://y'}")
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["offload.yaml:2", "offload.yaml:3"]


def test_no_fault_shows_a_value() -> None:
    """A key written where it does not belong is not repeated on the terminal."""
    with pytest.raises(ConfigError) as caught:
        read("providers:\n  - {name: a, kind: ollama, url: 'http://x', in_flight: sk-s3cret, api_key: sk-s3cret}")
    assert "s3cret" not in str(caught.value)


GOOD: list[dict[str, Any]] = [
    {},
    yaml.safe_load(SHARED),
    {"providers": [{"kind": "gguf", "path": "/m.gguf", "name": "m"}]},
    {
        "classes": {
            "small": {"serve": [{"provider": "ollama", "model": "x"}], "options": {"num_gpu": 99, "mlock": True}}
        }
    },
    {"categories": {"triage": {"class": "small", "system": "Sort it.", "temperature": 0.2, "think": None}}},
    {"notify": {"webhook_env": "TEAM", "apprise_env": ["A", "B_2"], "backlog_s": None, "batch_done": True}},
]
BAD: list[dict[str, Any]] = [
    {"provders": []},
    {"providers": [{"name": "a", "kind": "x", "url": "http://x"}]},
    {"providers": [{"name": "a", "kind": "ollama", "url": "http://x", "in_flight": 0}]},
    {"classes": {"small": {"sevre": []}}},
    {"classes": {"small": {"serve": [{"provider": "a"}]}}},
    {"classes": {"small": {"timeouts": {"total": 0}}}},
    {"categories": {"triage": {"clas": "small"}}},
    {"categories": {"triage": {"class": "small", "attempts": 0}}},
    {"notify": {"webhook_env": "https://hooks.example/x"}},
    {"notify": {"backlog_s": 0}},
]


@pytest.fixture(scope="module")
def schema() -> jsonschema_rs.Validator:
    """What editors pick up."""
    return jsonschema_rs.validator_for(config_schema())


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_the_schema_takes_what_the_reader_takes(schema: jsonschema_rs.Validator, good: dict[str, Any]) -> None:
    """No editor underlines a file that works."""
    parse(yaml.safe_dump(good), "offload.yaml")
    assert [error.message for error in schema.iter_errors(good)] == []


def test_servers_of_which_the_file_says_nothing_are_those_found(tmp_path: Path) -> None:
    """What `offload up` found serves a file that is about other things; one that names servers means those alone."""
    settings = Settings(home=tmp_path)
    settings.run_dir.mkdir()
    found = settings.run_dir / "detected.yaml"
    found.write_text(yaml.safe_dump(simulated("http://127.0.0.1:9")))
    mine = tmp_path / "offload.yaml"
    mine.write_text("classes: {small: {options: {num_ctx: 512}}}\nnotify: {webhook_env: HOOK}\n")
    registry = load_registry(settings)
    assert (set(registry.providers), registry.notify.webhook_env) == ({"simulator"}, "HOOK")
    assert registry.classes["small"].options == {"num_ctx": 512}
    assert [serve.provider for serve in registry.classes["small"].serve] == ["simulator"]
    assert not says_servers(settings)
    mine.write_text("providers: [{name: mine, kind: ollama, url: 'http://127.0.0.1:9'}]\n")
    assert (set(load_registry(settings).providers), says_servers(settings)) == ({"mine"}, True)
    found.write_text("providers: 3")
    mine.write_text("{}")
    with pytest.raises(ConfigError, match=r"detected\.yaml"):
        load_registry(settings)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_the_schema_refuses_what_the_reader_refuses(schema: jsonschema_rs.Validator, bad: dict[str, Any]) -> None:
    """An editor sees what `offload config check` would say."""
    with pytest.raises(ConfigError):
        parse(yaml.safe_dump(bad), "offload.yaml")
    assert not schema.is_valid(bad)


def test_where_the_configuration_comes_from(tmp_path: Path) -> None:
    """OFFLOAD_CONFIG, else the home's own file, else what `offload up` found, else the defaults."""
    settings = Settings(home=tmp_path)
    assert config_path(settings) is None
    assert "defaults" in load_registry(settings).source
    settings.run_dir.mkdir()
    for path in (settings.run_dir / "detected.yaml", tmp_path / "offload.yaml"):
        path.write_text(TWO)
        assert config_path(settings) == path
        assert load_registry(settings).source == str(path)
    named = settings.model_copy(update={"config": tmp_path / "named.yaml"})
    assert config_path(named) == tmp_path / "named.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_registry(named)
    (tmp_path / "named.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_registry(named)


@pytest.mark.parametrize(
    ("word", "known", "says"),
    [
        ("smal", ["small", "coder"], " (did you mean 'small'?)"),
        ("zzz", ["small", "coder"], " (known: coder, small)"),
        ("zzz", [], ""),
    ],
)
def test_the_nearest_name(word: str, known: list[str], says: str) -> None:
    """A near name is offered, else all of them, else nothing."""
    assert nearest(word, known) == says


def test_aliases() -> None:
    """The user's own come first, a name that is configured is never an alias, and what one means must be there."""
    registry = read("aliases: {claude-*: reason, 'claude-*haiku*': category:classify}")
    assert registry.meant("claude-opus-9") == "reason"
    assert registry.meant("claude-haiku-9") == "reason"  # the first that fits
    assert registry.meant("gemma3:4b") == "gemma3:4b"
    assert read("aliases: {gpt-*: auto}").meant("claude-haiku-9") == "small"
    with pytest.raises(ConfigError, match="did you mean 'reason'"):
        read("aliases: {claude-*: reson}")
