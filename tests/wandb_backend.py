"""What the stand-in W&B server keeps, and what it answers to each GraphQL operation.

Only what `wandb` asks for in an online run, in a sweep and for a saved workspace is here. An operation that is not
known gets an error, as a real server would give, and its name is kept in `Backend.unknown`.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

ENTITY = "tester"
MANIFEST = "manifest.json"


@dataclass
class ServerRun:
    """What arrived of a run."""

    name: str
    project: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    system: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    sweep: str | None = None
    exit_code: int | None = None
    streamed: bool = False
    told_to_stop: bool = False

    @property
    def state(self) -> str:
        if self.exit_code is None:
            return "running" if self.streamed else "pending"
        return "finished" if self.exit_code == 0 else "failed"

    def rows(self, key: str) -> list[dict[str, Any]]:
        """History rows that hold a key, without W&B's own columns."""
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in self.history if key in row]

    def file(self, value: dict[str, Any]) -> Any:
        """The JSON file (a table, a Plotly figure) that a logged value refers to."""
        return json.loads(self.files[value["path"]])

    def table(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a logged table."""
        content = self.file(value)
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def settings(self) -> dict[str, Any]:
        """The config as the user set it: the server has each value with a description."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}


@dataclass
class Sweep:
    """A sweep: trials in the order in which they were handed out, by whom, and when to stop one."""

    name: str
    project: str
    text: str
    config: dict[str, Any]
    trials: list[ServerRun] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    state: str = "PENDING"
    stop_when: Callable[[ServerRun], bool] = lambda run: False
    _suggestions: Iterator[dict[str, Any]] | None = None

    def suggest(self) -> dict[str, Any] | None:
        """The next trial's parameters, or None where there are no more."""
        if self._suggestions is None:
            grid = self.config["method"] == "grid"
            self._suggestions = _grid(self.config["parameters"]) if grid else _random(self.config["parameters"])
        cap = self.config.get("run_cap", math.inf)
        return next(self._suggestions, None) if len(self.trials) < cap else None


class Backend:
    """Everything that arrived, as plain structures: `runs` by name, `sweeps` by name, `views` (workspaces, reports).
    `projects` that exist without a run can be added.

    Hold `lock` to look at something that may still grow.
    """

    def __init__(self) -> None:
        self.url = ""
        self.lock = threading.RLock()
        self.runs: dict[str, ServerRun] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.failures: list[str] = []
        self.downloads: list[str] = []
        self.projects: set[str] = set()
        self._artifacts: dict[str, ServerRun] = {}
        self._stored: dict[str, dict[str, bytes]] = {}

    # -- what is not GraphQL -------------------------------------------------------------------------------------------

    def stream(self, name: str, project: str, content: dict[str, Any]) -> dict[str, Any]:
        """Take a piece of a run's history, summary, console and system metrics."""
        run = self._run(name, project)
        run.streamed = True
        for file, chunk in (content.get("files") or {}).items():
            lines, offset = chunk.get("content", []), chunk.get("offset", 0)
            if file == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif file == "output.log":
                run.console[offset:] = lines
            elif file in ("wandb-history.jsonl", "wandb-events.jsonl"):
                # A piece may be sent again after a lost answer; its offset says which lines it holds.
                kept = run.history if file == "wandb-history.jsonl" else run.system
                kept[offset : offset + len(lines)] = [json.loads(line) for line in lines]
        if content.get("complete"):
            run.exit_code = content.get("exitcode", 0)
        return {"stopped": False, "exitcode": None, "limits": {}}  # stopping is left to agents

    def upload(self, path: str, content: bytes) -> None:
        """Take a file of a run."""
        kind, owner, file = path.split("/", 2)
        if kind == "run":
            self.runs[owner].files[file] = content
        else:
            self._stored.setdefault(owner, {})[file] = content

    def download(self, path: str) -> bytes | None:
        """A file of an artifact."""
        _, owner, file = path.split("/", 2)
        self.downloads.append(file)
        return self._stored.get(owner, {}).get(file)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of a GraphQL operation; None for one that is not known."""
        answer = getattr(self, f"on_{operation}", None)
        if answer is None:
            self.unknown.append(operation)
            return None
        return answer(**variables)

    # -- who is asking, and what can the server do ---------------------------------------------------------------------

    def on_Viewer(self, **_: Any) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {
            "id": _id("User", ENTITY), "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}",
            "admin": False, "deletedAt": None, "teams": teams, "apiKeys": {"edges": []},
            "defaultEntity": {"name": ENTITY},
        }}  # fmt: skip

    on_GetViewer = on_GetDefaultEntity = on_Viewer

    def on_ServerInfo(self, **_: Any) -> dict[str, Any]:
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}}

    def on_ServerFeaturesQuery(self, **_: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def on_OrgFeatureFlags(self, **_: Any) -> dict[str, Any]:
        return {"organization": None}

    def on_OrganizationCoreWeaveOrganizationID(self, **_: Any) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    # -- runs ----------------------------------------------------------------------------------------------------------

    def on_UpsertBucket(
        self, name: str | None = None, project: str | None = None, id: str | None = None, config: str | None = None,
        summaryMetrics: str | None = None, tags: list[str] | None = None, sweep: str | None = None, **_: Any,
    ) -> dict[str, Any]:  # fmt: skip
        name = name or (_name(id) if id else uuid.uuid4().hex[:8])
        new = name not in self.runs or not self.runs[name].streamed
        run = self._run(name, project)
        run.config |= json.loads(config or "{}")
        run.summary |= json.loads(summaryMetrics or "{}")
        run.tags = tags or run.tags
        run.sweep = sweep or run.sweep
        return {"upsertBucket": {"bucket": _bucket(run), "inserted": new}}

    def on_RunResumeStatus(self, project: str, name: str, **_: Any) -> dict[str, Any]:
        run = self.runs.get(name)
        known = run is not None and run.streamed
        return {"model": {**_project(project), "bucket": _bucket(run) if known and run else None}}

    def on_RunStoppedStatus(self, **_: Any) -> dict[str, Any]:
        return {"project": {"run": {"stopped": False}}}

    def on_Runs(self, project: str, cursor: str | None = None, perPage: int = 50, **_: Any) -> dict[str, Any]:
        """A page of a project's runs, the oldest first; None for a project that has none."""
        runs = [run for run in self.runs.values() if run.project == project]
        if not runs and project not in self.projects:
            return {"project": None}
        start = int(cursor or 0)
        page = [
            {"cursor": str(start + 1 + index), "node": _listed(run)}
            for index, run in enumerate(runs[start : start + perPage])
        ]
        more = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(runs)}
        return {"project": {
            "internalId": _id("ProjectInternalId", project), "runCount": len(runs), "readOnly": False,
            "runs": {"edges": page, "pageInfo": more},
        }}  # fmt: skip

    def on_CreateRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        places = [{"name": file, "uploadUrl": f"{self.url}/storage/run/{run}/{file}"} for file in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def on_MarkRunFilesUploaded(self, **_: Any) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def on_NotifyScriptableRunAlert(self, runName: str, **alert: Any) -> dict[str, Any]:
        self.runs[runName].alerts.append({key: alert.get(key) for key in ("title", "text", "severity")})
        return {"notifyScriptableRunAlert": {"success": True}}

    # -- artifacts, of which a logged table makes one ------------------------------------------------------------------

    def on_CreateArtifact(self, input: dict[str, Any]) -> dict[str, Any]:
        key = _id("Artifact", uuid.uuid4().hex)
        run = self._run(input["runName"], input.get("projectName"))
        run.artifacts.append(
            {"id": key, "name": input["artifactCollectionName"], "committed": False, "digest": input.get("digest")}
        )
        self._artifacts[key] = run
        sequence = {"id": "sequence", "latestArtifact": None}
        artifact = {"id": key, "state": "PENDING", "digest": input.get("digest"), "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def on_CreateArtifactManifest(self, artifactID: str, name: str, **_: Any) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": self._manifest(artifactID)}}}

    def on_UpdateArtifactManifest(self, artifactManifestID: str, **_: Any) -> dict[str, Any]:
        file = self._manifest(artifactManifestID)
        return {"updateArtifactManifest": {"artifactManifest": {"id": artifactManifestID, "file": file}}}

    def on_CreateArtifactFiles(self, input: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "id": _id("File", file["name"]), "name": file["name"], "displayName": file["name"],
                "storagePath": file["name"], "uploadHeaders": [], "uploadMultipartUrls": None,
                "uploadUrl": f"{self.url}/storage/artifact/{_name(file['artifactID'])}/{file['name']}",
                "artifact": {"id": file["artifactID"]},
            }
            for file in input.get("artifactFiles") or input["storageFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def on_CommitArtifact(self, artifactID: str) -> dict[str, Any]:
        for artifact in self._artifacts[artifactID].artifacts:
            artifact["committed"] |= artifact["id"] == artifactID
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": ""}}}

    def _manifest(self, key: str) -> dict[str, Any]:
        url = f"{self.url}/storage/artifact/{_name(key)}/{MANIFEST}"
        return {"id": MANIFEST, "name": MANIFEST, "displayName": MANIFEST, "uploadUrl": url, "uploadHeaders": []}

    def on_ArtifactMembershipByName(self, entity: str, project: str, name: str, **_: Any) -> dict[str, Any]:
        found = self._find(name.partition(":")[0])
        if found is None:
            return {"project": {"artifactCollectionMembership": None}}
        owner = _project(project) | {"internalId": _id("ProjectInternalId", project), "entity": {"name": entity}}
        collection = {"name": found["name"], "project": owner}
        files, time = self._files(found), "2026-01-01T00:00:00Z"
        artifact = {
            "__typename": "Artifact", "id": found["id"], "versionIndex": 0, "artifactType": {"name": "model"},
            "artifactSequence": {"__typename": "ArtifactSequence", **collection}, "description": None, "metadata": "{}",
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
            "size": sum(map(len, files.values())), "digest": found["digest"], "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": None, "fileCount": len(files), "createdAt": time, "updatedAt": None,
        }  # fmt: skip
        alias = {"__typename": "ArtifactAlias", "id": _id("Alias", "latest"), "alias": "latest"}
        return {"project": {"artifactCollectionMembership": {
            "__typename": "ArtifactCollectionMembership", "id": _id("Membership", found["name"]), "versionIndex": 0,
            "createdAt": time, "aliases": [alias], "artifact": artifact,
            "artifactCollection": {"__typename": "ArtifactSequence", **collection},
        }}}  # fmt: skip

    def on_FetchArtifactManifest(self, id: str) -> dict[str, Any]:
        url = f"{self.url}/storage/artifact/{_name(id)}/{MANIFEST}"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def on_GetArtifactMembershipFileUrls(self, collection: str, **_: Any) -> dict[str, Any]:
        found = self._find(collection)
        assert found is not None
        root = f"{self.url}/storage/artifact/{_name(found['id'])}"
        nodes = [{"__typename": "File", "name": name, "directUrl": f"{root}/{name}"} for name in self._files(found)]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {"project": {"artifactCollection": {
            "__typename": "ArtifactSequence", "artifactMembership": {"files": files},
        }}}  # fmt: skip

    def _find(self, name: str) -> dict[str, Any] | None:
        logged = (each for run in self.runs.values() for each in run.artifacts if each["committed"])
        return next((each for each in logged if each["name"] == name), None)

    def _files(self, artifact: dict[str, Any]) -> dict[str, bytes]:
        stored = self._stored.get(_name(artifact["id"]), {})
        return {name: content for name, content in stored.items() if name != MANIFEST}

    # -- sweeps --------------------------------------------------------------------------------------------------------

    def on_UpsertSweep(
        self, id: str | None = None, config: str | None = None, projectName: str | None = None,
        state: str | None = None, **_: Any,
    ) -> dict[str, Any]:  # fmt: skip
        import yaml

        if config:
            name = uuid.uuid4().hex[:8]
            self.sweeps[name] = Sweep(name, projectName or "uncategorized", config, yaml.safe_load(config))
        sweep = self.sweeps[name if config else _name(id or "")]
        sweep.state = state or sweep.state
        answer = {"name": sweep.name, "project": _project(sweep.project)}
        return {"upsertSweep": {"sweep": answer, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, sweep: str, **_: Any) -> dict[str, Any]:
        found = self.sweeps.get(sweep)
        if found is None:
            return {"project": {"sweep": None}}
        return {"project": {"sweep": {
            "id": _id("Sweep", found.name), "name": found.name, "method": found.config["method"], "state": found.state,
            "description": None, "config": found.text, "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": None,
            "updatedAt": None, "earlyStopJobRunning": False, "bestLoss": None, "controller": None, "scheduler": None,
            "runs": {"edges": []},
        }}}  # fmt: skip

    def on_CreateAgent(self, sweep: str, host: str, **_: Any) -> dict[str, Any]:
        self.sweeps[sweep].state = "RUNNING"
        agent = f"{sweep}-{len(self.sweeps[sweep].agents)}"
        self.sweeps[sweep].agents.append(agent)
        return {"createAgent": {"agent": {"id": _id("Agent", agent)}}}

    def on_Heartbeat(self, id: str, runState: str | None = None, **_: Any) -> dict[str, Any]:
        sweep = self.sweeps[_name(id).partition("-")[0]]
        active = [self.runs[name] for name in json.loads(runState or "{}")]
        commands = []
        for run in active:
            if not run.told_to_stop and sweep.stop_when(run):
                run.told_to_stop = True
                commands.append({"type": "stop", "run_id": run.name})
        if not active:
            commands.append(self._next_command(sweep))
        return {"agentHeartbeat": {"agent": {"id": id}, "commands": json.dumps(commands)}}

    def _next_command(self, sweep: Sweep) -> dict[str, Any]:
        parameters = sweep.suggest()
        if parameters is None:
            sweep.state = "FINISHED"
            return {"type": "exit"}
        run = self._run(uuid.uuid4().hex[:8], sweep.project)
        run.sweep, run.config = sweep.name, {key: {"value": value} for key, value in parameters.items()}
        sweep.trials.append(run)
        return {"type": "run", "run_id": run.name, "program": sweep.config.get("program"), "args": run.config}

    # -- workspaces and reports ----------------------------------------------------------------------------------------

    def on_upsertView(self, **view: Any) -> dict[str, Any]:
        self.views.append(view)
        name, time, user = f"view{len(self.views)}", "2026-01-01T00:00:00Z", {"id": "", "username": ENTITY}
        answer = {
            "id": _id("View", name), "type": view.get("type"), "name": name, "displayName": view.get("displayName"),
            "description": view.get("description"), "spec": view.get("spec"),
            "project": _project(view.get("projectName") or ""),
            "user": user | {"photoUrl": None, "admin": False, "name": ENTITY}, "coverUrl": None, "previewUrl": None,
            "locked": False, "updatedAt": time, "createdAt": time, "starCount": 0, "starred": False, "parentId": None,
            "viewCount": 0, "showcasedAt": None,
        }  # fmt: skip
        return {"upsertView": {"view": answer, "inserted": True}}

    on_UpsertView2 = on_upsertView  # the one of workspaces

    def on_GetProjects(self, **_: Any) -> dict[str, Any]:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": []}}  # so that a report makes its project first

    def on_CreateProject(self, input: dict[str, Any]) -> dict[str, Any]:
        project = _project(input["name"]) | {"description": None, "access": None, "views": None}
        return {"result": {"model": project, "project": project, "inserted": True}}

    def on_UpsertModel(self, name: str, **_: Any) -> dict[str, Any]:
        return {"upsertModel": {"model": _project(name), "project": _project(name), "inserted": False}}

    def _run(self, name: str, project: str | None) -> ServerRun:
        return self.runs.setdefault(name, ServerRun(name, project or "uncategorized"))


def _id(kind: str, name: str) -> str:
    return base64.b64encode(f"{kind}:{name}".encode()).decode()


def _name(key: str) -> str:
    return base64.b64decode(key).decode().rpartition(":")[2]


def _project(name: str) -> dict[str, Any]:
    entity = {"id": _id("Entity", ENTITY), "name": ENTITY}
    return {"id": _id("Project", name), "name": name, "entityName": ENTITY, "entity": entity}


def _bucket(run: ServerRun) -> dict[str, Any]:
    return {
        "id": _id("Run", run.name), "name": run.name, "displayName": run.name, "description": None, "notes": None,
        "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "tags": run.tags,
        "sweepName": run.sweep, "historyLineCount": len(run.history), "eventsLineCount": len(run.system),
        "logLineCount": len(run.console), "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": "[]", "wandbConfig": json.dumps({"t": 1}), "project": _project(run.project),
    }  # fmt: skip


def _listed(run: ServerRun) -> dict[str, Any]:
    """A run as a list of a project's runs has it."""
    user = {"name": ENTITY, "username": ENTITY}
    time = "2026-01-01T00:00:00Z"
    return {
        **_bucket(run), "projectId": "1", "state": run.state, "group": None, "jobType": None, "commit": None,
        "readOnly": False, "createdAt": time, "heartbeatAt": time, "systemMetrics": "{}", "user": user,
        "historyKeys": None,
    }  # fmt: skip


def _grid(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choices = [entry.get("values", [entry.get("value")]) for entry in parameters.values()]
    return (dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices))


def _random(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    generator = random.Random(0)
    while True:
        yield {key: _draw(entry, generator) for key, entry in parameters.items()}


def _draw(entry: dict[str, Any], generator: random.Random) -> Any:
    if "min" not in entry:
        return generator.choice(entry.get("values", [entry.get("value")]))
    low, high = entry["min"], entry["max"]
    if entry.get("distribution") == "log_uniform_values":
        return math.exp(generator.uniform(math.log(low), math.log(high)))
    return generator.randint(low, high) if isinstance(low, int) else generator.uniform(low, high)
