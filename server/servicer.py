"""What each call of `pellucid.v1.ExplainService` does; plain functions from request to response, no transport."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import asdict

from analyzers.certificate import Certificate
from analyzers.errors import InvalidInputError
from analyzers.explain import DEFAULT_TOP_K_CLASSES, predictions
from analyzers.what_if import Change, Float64Array
from pellucid.v1 import explain_pb2 as pb
from server.convert import prediction_message, proof_message, put
from server.model import ExplainedModel, WhatIf
from server.repository import Repository
from server.request import Batch, Limits, read_batch, read_wanted
from server.shared_run import Outputs

SMALL_BYTES = 1 << 20


class Servicer:
    """Answers requests from a repository of models.

    Args:
        repository: the models.
        limits: what a request may hold.
        decoders: threads that decode pictures and read what is large.
    """

    def __init__(self, repository: Repository, limits: Limits, decoders: Executor) -> None:
        self._repository = repository
        self._limits = limits
        self._decoders = decoders

    async def explain(self, request: pb.ExplainRequest) -> bytes:
        """Predict and explain the pictures of a request in one run; the answer is an ExplainResponse, serialised."""
        model = self._repository.get(request.model, request.version)
        wanted = read_wanted(request)
        model.batcher.check(len(request.encoded_images) or 1)
        batch = await self._read(request, model)

        def finish(outputs: Outputs, start: int) -> bytes:
            answers = model.answer(outputs, start, batch.frames, batch.digests, wanted)
            response = pb.ExplainResponse(model=model.name, version=model.version)
            for answer in answers:
                put(response.explanations.add(), answer, request.evidence)
            return response.SerializeToString()

        return await model.run(batch.images, model.outputs, finish)

    async def what_if(self, request: pb.WhatIfRequest) -> pb.WhatIfResponse:
        """Predict one picture and say what the answer would be if things counted for less or more."""
        model = self._repository.get(request.model, request.version)
        if request.top_k_classes < 0:
            raise InvalidInputError("top_k_classes", f"is {request.top_k_classes}; expected 0 (the default) or more")
        changes = [_change(place, change) for place, change in enumerate(request.changes)]
        batch = await self._read(request, model)
        answer = await model.what_if(
            batch.images,
            batch.frames[0],
            batch.digests[0],
            changes,
            flip=request.smallest_flip,
            occlude=request.occlude,
        )
        return _what_if_response(model, answer, request.top_k_classes or DEFAULT_TOP_K_CLASSES)

    async def _read(self, request: pb.ExplainRequest | pb.WhatIfRequest, model: ExplainedModel) -> Batch:
        """Read pictures: small tensors at once, what takes longer in a thread of its own."""
        began, size = time.monotonic(), model.manifest.input
        if request.HasField("tensor") and request.ByteSize() < SMALL_BYTES:
            batch = read_batch(request, size, self._limits)
        else:
            loop = asyncio.get_running_loop()
            batch = await loop.run_in_executor(self._decoders, read_batch, request, size, self._limits)
        model.decoded(began)
        return batch

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
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

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Say what one model takes, knows and can explain."""
        return _describe(self._repository.get(request.model, request.version))


def _change(place: int, change: pb.Change) -> Change:
    match change.WhichOneof("what"):
        case "feature":
            return Change("feature", change.feature, change.scale)
        case "part":
            return Change("part", change.part, change.scale)
        case "node":
            return Change("node", change.node.node, change.scale, change.node.layer)
        case _:
            raise InvalidInputError(f"changes[{place}]", "names nothing; expected a feature, a part or a node")


def _what_if_response(model: ExplainedModel, answer: WhatIf, count: int) -> pb.WhatIfResponse:
    def best(logits: Float64Array) -> list[pb.Prediction]:
        return [prediction_message(one) for one in predictions(model.manifest, logits, count)]

    response = pb.WhatIfResponse(
        model=model.name,
        version=model.version,
        before=best(answer.before),
        after=best(answer.after),
        logits_before=answer.before.tolist(),
        logits_after=answer.after.tolist(),
        proof=proof_message(answer.proof),
    )
    if answer.flip is not None:
        response.flip.CopyFrom(pb.Flip(features=answer.flip.features, after=best(answer.flip.logits)))
    if answer.occlusion is not None:
        response.occlusion.CopyFrom(pb.Occlusion(**asdict(answer.occlusion)))
    return response


def _describe(model: ExplainedModel) -> pb.GetModelResponse:
    manifest = model.manifest
    source, section = manifest.provenance, manifest.class_features
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
        exact=section is not None and section.exact,
        inexact="" if section is None else section.inexact,
        features=0 if model.head is None else model.head.shape[1],
        graph_layers=[
            pb.GraphLayer(layer=layer.layer, nodes=max(map(len, layer.node)))
            for layer in (() if manifest.explanatory_graph is None else manifest.explanatory_graph.layers)
        ],
        variant=_variant(Certificate.from_metadata(model.session.metadata)),
    )


def _variant(certificate: Certificate | None) -> pb.Variant | None:
    if certificate is None:
        return None
    return pb.Variant(
        form=certificate.form, original_sha256=certificate.model_sha256, certificate=certificate.to_json()
    )
