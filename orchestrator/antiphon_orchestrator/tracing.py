"""OpenTelemetry for unary calls of clients, off unless `telemetry.tracing` is set.

The gRPC instrumentation costs some 200 µs a call and breaks streams such as health Watch, so it sees only the unary
methods of the public services; a run's own trace needs none of it, since its traceparent travels in the record.
Imported only when it is on: the libraries are an extra (in a checkout: pip install ./sdk/python ".[otel]").
"""

from __future__ import annotations

from typing import Any

import grpc

from .api.image import Image


class TracingUnavailable(Exception):
    """Tracing is set and its libraries are not installed."""


class Tracing:
    """The interceptors of one process, and `close`, which sends what is left."""

    def __init__(self, image: Image, endpoint: str) -> None:
        """Raises TracingUnavailable."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise TracingUnavailable(
                f"telemetry.tracing needs {error.name}; "
                'in a checkout of Antiphon, run: pip install ./sdk/python ".[otel]"'
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "antiphon-orchestrator"}))
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        methods = [path for path, method in image.methods.items() if method.unary and path.startswith("/antiphon.v1.")]
        wanted = filters.any_of(*(filters.full_method_name(path) for path in methods))
        interceptor = aio_server_interceptor(tracer_provider=self._provider, filter_=wanted)  # type: ignore[no-untyped-call]
        self.interceptors: tuple[grpc.aio.ServerInterceptor[Any, Any], ...] = (interceptor,)

    def close(self) -> None:
        self._provider.shutdown()
