# The server, in two variants of one file:
#
#   docker build -t pellucid .                       CPU (the default: it runs everywhere and is small)
#   docker build -t pellucid:gpu --target gpu .      NVIDIA GPUs, with the CUDA 13 and cuDNN 9 libraries
#
# Stages go from what seldom changes to what often does: a change in the code leaves the layers of third-party
# packages alone. Final stages have no compiler, no pip cache and no torch. docs/deployment.md says more.

# Another registry, or a digest: --build-arg PYTHON_IMAGE=mirror/python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# What builds: an empty virtual environment, to be filled by the base image's pip, which stays outside of it.
FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
RUN python -m venv --without-pip /opt/pellucid
COPY pyproject.toml deploy/requirements.py ./

FROM build AS cpu-packages
RUN python requirements.py server cpu > requirements.txt \
    && python -m pip --python /opt/pellucid/bin/python install --no-cache-dir --requirement requirements.txt

FROM build AS gpu-packages
RUN python requirements.py server gpu > requirements.txt \
    && python -m pip --python /opt/pellucid/bin/python install --no-cache-dir --requirement requirements.txt

FROM build AS code
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m pip --python /opt/pellucid/bin/python install --no-cache-dir --no-deps --prefix /installed \
       /wheels/pellucid-*.whl

# What both variants share.
FROM ${PYTHON_IMAGE} AS server
# The number, since Kubernetes' runAsNonRoot cannot look a name up; 65532 is what other images call nonroot.
RUN groupadd --system --gid 65532 pellucid \
    && useradd --system --no-log-init --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin pellucid \
    && mkdir /models
# ONNX Runtime collects telemetry unless this is set before it is imported.
ENV ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/pellucid/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PELLUCID_REPOSITORY=/models \
    PELLUCID_HOST=0.0.0.0 \
    PELLUCID_PORT=50051 \
    PELLUCID_METRICS_PORT=8002
WORKDIR /models
USER 65532:65532
EXPOSE 50051 8002
STOPSIGNAL SIGTERM
# Kubernetes ignores it and asks grpc.health.v1 itself; docker and compose have nothing else.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["pellucid", "health", "--server", "127.0.0.1:50051", "--timeout", "3"]
ENTRYPOINT ["pellucid-serve"]
LABEL org.opencontainers.image.title="pellucid" \
      org.opencontainers.image.description="CNN predictions served together with their reasons" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM server AS gpu
# What the NVIDIA container toolkit lets in: the driver's compute library and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PELLUCID_DEVICE=gpu
COPY --from=gpu-packages /opt/pellucid /opt/pellucid
COPY --from=code /installed /opt/pellucid
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"

# The last stage is what a build without --target makes.
FROM server AS cpu
COPY --from=cpu-packages /opt/pellucid /opt/pellucid
COPY --from=code /installed /opt/pellucid
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" org.opencontainers.image.revision="${REVISION}"
