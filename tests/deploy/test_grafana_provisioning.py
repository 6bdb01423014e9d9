"""deploy/grafana/provisioning, held to what Grafana documents of such files; Grafana itself cannot be run here."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, ValidationError

from grafana import FOLDER as BOARDS

DEPLOY = Path(__file__).parents[2] / "deploy"
PROVISIONING = DEPLOY / "grafana" / "provisioning"
Text = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Grafana passes over a field that it does not know, and so over a misspelt one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PrometheusOptions(Strict):
    httpMethod: Literal["GET", "POST"] = "POST"
    timeInterval: Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")] = "15s"


class Source(Strict):
    name: Text
    uid: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
    type: Literal["prometheus"]
    access: Literal["proxy"]
    url: Annotated[HttpUrl, Field(strict=False)]
    isDefault: bool = False
    jsonData: PrometheusOptions = PrometheusOptions()


class Sources(Strict):
    """https://grafana.com/docs/grafana/latest/administration/provisioning/#data-sources"""

    apiVersion: Literal[1]
    datasources: Annotated[list[Source], Field(min_length=1)]


class Folder(Strict):
    path: Annotated[str, Field(pattern="^/")]


class Provider(Strict):
    name: Text
    type: Literal["file"]
    folder: str = ""
    disableDeletion: bool = False
    allowUiUpdates: bool = False
    updateIntervalSeconds: Annotated[int, Field(gt=0)] = 10
    options: Folder


class Providers(Strict):
    """https://grafana.com/docs/grafana/latest/administration/provisioning/#dashboards"""

    apiVersion: Literal[1]
    providers: Annotated[list[Provider], Field(min_length=1)]


FILES: list[tuple[str, type[Strict]]] = [
    ("datasources/prometheus.yml", Sources),
    ("dashboards/trimtab.yml", Providers),
]


def load(file: str) -> Any:
    return yaml.safe_load((PROVISIONING / file).read_text())


@pytest.mark.parametrize(("file", "schema"), FILES)
def test_a_file_is_of_the_schema(file: str, schema: type[Strict]) -> None:
    schema.model_validate(load(file))


@pytest.mark.parametrize(
    ("file", "schema", "old", "new"),
    [
        (*FILES[0], "isDefault", "isDefalt"),
        (*FILES[0], "url: http://", "url: "),
        (*FILES[0], "type: prometheus", "type: promotheus"),
        (*FILES[1], "path: /", "path: "),
        (*FILES[1], "apiVersion: 1", "apiVersion: '1'"),
        (*FILES[1], "providers:", "provider:"),
    ],
)
def test_a_broken_file_is_refused(file: str, schema: type[Strict], old: str, new: str) -> None:
    text = (PROVISIONING / file).read_text()
    assert old in text
    with pytest.raises(ValidationError):
        schema.model_validate(yaml.safe_load(text.replace(old, new, 1)))


def test_the_files_are_where_grafana_looks_and_agree_with_the_rest() -> None:
    found = {str(file.relative_to(PROVISIONING)) for file in PROVISIONING.rglob("*.yml")}
    assert found == {file for file, _ in FILES}
    sources, providers = (schema.model_validate(load(file)) for file, schema in FILES)
    assert isinstance(sources, Sources)
    assert isinstance(providers, Providers)
    interval = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert sources.datasources[0].jsonData.timeInterval == interval
    path = providers.providers[0].options.path
    told = (PROVISIONING / "dashboards" / "trimtab.yml").read_text()
    assert f"cp dashboards/grafana/*.json {PurePosixPath(path)}/" in told
    assert list(BOARDS.glob("*.json"))
