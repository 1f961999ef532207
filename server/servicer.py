"""What each call of `pellucid.v1.ExplainService` does; plain functions from request to response, no transport."""

from __future__ import annotations

from analyzers.explain import Wanted
from pellucid.v1 import explain_pb2 as pb
from server.convert import to_message
from server.model import ExplainedModel
from server.repository import Repository
from server.request import Limits, read_batch


class Servicer:
    """Answers requests from a repository of models; thread-safe."""

    def __init__(self, repository: Repository, limits: Limits) -> None:
        self._repository = repository
        self._limits = limits

    def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """Predict and explain the pictures of a request in one run."""
        model = self._repository.get(request.model, request.version)
        wanted = Wanted(
            frozenset(request.rows),
            request.top_k_classes,
            request.top_k_reasons,
            request.max_nodes,
            request.min_percentile,
        )
        batch = read_batch(request, model.manifest.input, self._limits)
        explanations = model.explain(batch.images, batch.frames, wanted)
        return pb.ExplainResponse(
            model=model.name, version=model.version, explanations=[to_message(e) for e in explanations]
        )

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """List every model version, refused ones with the reason."""
        return pb.ListModelsResponse(
            models=[
                pb.ModelStatus(
                    model=entry.name,
                    version=entry.version,
                    ready=entry.model is not None,
                    problem=entry.problem,
                    rows=() if entry.model is None else entry.model.manifest.rows,
                )
                for entry in self._repository.entries
            ]
        )

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Say what one model takes, knows and can explain."""
        return _describe(self._repository.get(request.model, request.version))


def _describe(model: ExplainedModel) -> pb.GetModelResponse:
    manifest = model.manifest
    source = manifest.provenance
    return pb.GetModelResponse(
        model=model.name,
        version=model.version,
        input=pb.ModelInput(
            height=manifest.input.height,
            width=manifest.input.width,
            channels=manifest.input.channels,
            resize=manifest.input.resize,
        ),
        classes=manifest.classes,
        rows=manifest.rows,
        max_classes=manifest.max_classes,
        provenance=pb.Provenance(
            producer=source.producer,
            data=source.data,
            data_fingerprint=source.data_fingerprint,
            pictures=source.pictures,
        ),
        execution_provider=model.session.provider,
        sha256=model.sha256,
        graph_layers=[
            pb.GraphLayer(layer=layer.layer, nodes=max(map(len, layer.node)))
            for layer in (() if manifest.explanatory_graph is None else manifest.explanatory_graph.layers)
        ],
    )
