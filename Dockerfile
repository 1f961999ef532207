# The server on a CPU: no torch, no compiler, no root. Build: docker build -t pellucid .
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# ONNX Runtime collects telemetry unless this is set before it is imported.
ENV ORT_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1 PELLUCID_REPOSITORY=/models PELLUCID_HOST=0.0.0.0
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir "$(echo /wheels/pellucid-*.whl)[server,cpu]" \
    && rm -r /wheels \
    && useradd --system --no-create-home pellucid
USER pellucid
EXPOSE 50051
VOLUME /models
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["pellucid", "models", "--server", "127.0.0.1:50051", "--timeout", "2"]
ENTRYPOINT ["pellucid-serve"]
