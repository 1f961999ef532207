"""Dashboard, alerts and scraping: PromQL that parses, over metrics and labels that the server has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.deploy.facts import (
    DEPLOY,
    GRPC_PORT,
    METRICS,
    METRICS_PORT,
    SCRAPED,
    STAGES,
    Document,
    documents,
    image_environment,
    toml,
)
from tests.deploy.promql import grouped, parse, selected

PROMETHEUS, DASHBOARD = DEPLOY / "prometheus", DEPLOY / "grafana" / "dashboards" / "pellucid.json"
DURATION = re.compile(r"\d+[smhd]")


def rules() -> list[Document]:
    (file,) = documents(PROMETHEUS / "alerts.yml")
    return [rule for group in file["groups"] for rule in group["rules"]]


def panels() -> list[Document]:
    return json.loads(DASHBOARD.read_text())["panels"]


def adapter() -> Document:
    (file,) = documents(PROMETHEUS / "adapter.yaml")
    (rule,) = file["rules"]
    return rule


def adapter_query() -> str:
    """The query as the adapter fills it in for one pod."""
    filled = {"<<.LabelMatchers>>": 'namespace="default",pod="one"', "<<.GroupBy>>": "pod"}
    query = adapter()["metricsQuery"]
    for name, value in filled.items():
        query = query.replace(name, value)
    return query


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield adapter()["seriesQuery"]
    yield adapter_query()


def metric_of(series: str) -> str:
    (name,) = (name for name, metric in METRICS.items() if series in metric.series(name))
    return name


@pytest.mark.parametrize("expression", list(expressions()))
def test_every_expression_reads_metrics_and_labels_that_the_server_has(expression: str) -> None:
    tree = parse(expression)
    assert selected(tree)
    labels = set(SCRAPED)
    for series, narrowed in selected(tree).items():
        own = METRICS[metric_of(series)].labels
        assert set(narrowed) <= own | SCRAPED
        assert narrowed.get("stage", "queue") in STAGES
        labels |= own
    assert grouped(tree) <= labels


def test_a_wrong_expression_and_an_unknown_metric_are_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        parse("sum(rate(pellucid_requests_total[5m])")
    with pytest.raises(ValueError, match="not enough values"):
        metric_of("pellucid_request_total")
    tree = parse('sum by (le) (rate(pellucid_stage_seconds_bucket{stage="queue"}[1m])) > on (pod) up')
    assert selected(tree) == {"pellucid_stage_seconds_bucket": {"stage": "queue"}, "up": {}}
    assert grouped(tree) == {"le", "pod"}


def test_the_metrics_that_are_counted_upon_are_the_server_s() -> None:
    source = ROOT / "server" / "metrics.py"
    if not source.exists():
        pytest.skip("the server has no metrics yet")
    text = source.read_text()
    for name in METRICS.keys() - {"up"}:
        assert f'"{name.removesuffix("_total")}"' in text, name


def test_everything_that_the_server_counts_is_on_the_dashboard() -> None:
    shown = {metric_of(name) for panel in panels() for t in panel["targets"] for name in selected(parse(t["expr"]))}
    assert shown == set(METRICS) - {"up"}


def test_alerts_say_for_how_long_how_bad_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert DURATION.fullmatch(rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_labels_that_an_alert_s_text_names_are_there_when_it_fires() -> None:
    for rule in rules():
        tree = parse(rule["expr"])
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        present = (
            grouped(tree)
            if "sum" in rule["expr"]
            else {"instance"}.union(*(METRICS[metric_of(s)].labels for s in selected(tree)))
        )
        assert named <= present, rule["alert"]


def test_the_dashboard_is_in_grafana_s_own_words() -> None:
    reason = "grafana-foundation-sdk comes with pellucid[dev]"
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=reason)
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=reason)
    plugins.register_default_plugins()
    ours = json.loads(DASHBOARD.read_text())
    theirs = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(ours)))
    assert list(lost(ours, theirs)) == []


def lost(ours: object, theirs: object, where: str = "") -> Iterator[str]:
    """Return what did not survive being read and written by Grafana's own types; they drop what they do not know."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{where}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{where}/{number}")
    elif ours != theirs:
        yield where


def test_panels_lie_beside_each_other_and_every_one_says_what_it_shows() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells
        assert place["x"] + place["w"] <= 24
        cells |= own
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_compose_runs_the_image_as_the_manifests_do_and_scrapes_it() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (scrape,) = documents(PROMETHEUS / "prometheus.yml")
    server = compose["services"]["server"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["ports"] == [f"127.0.0.1:{GRPC_PORT}:{GRPC_PORT}"]
    assert server["volumes"] == [f"../models:{image_environment('cpu')['PELLUCID_REPOSITORY']}:ro"]
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": [f"server:{METRICS_PORT}"]}]
    assert {"prometheus", "server"} <= set(compose["services"])
    assert not [
        one["image"] for one in compose["services"].values() if ":" not in one["image"] or "latest" in one["image"]
    ]
    for one in compose["services"].values():
        for volume in one["volumes"]:
            if (source := volume.split(":")[0]) != "../models":
                assert (DEPLOY / source).exists(), source
    mounted = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert set(scrape["rule_files"]) <= mounted


def test_images_are_tagged_with_the_version_of_the_project() -> None:
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "analyzers" / "__init__.py").read_text(), re.MULTILINE)[1]
    assert "version" in toml((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    files = list(DEPLOY.rglob("*.y*ml"))
    tags = [tag for path in files for tag in re.findall(r"(?:image: pellucid:|newTag: )(\S+)", path.read_text())]
    assert len(tags) >= 4
    assert {tag.removesuffix("-gpu") for tag in tags} == {version}
