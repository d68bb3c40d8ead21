"""A receiver of OTLP over HTTP, whose messages OpenTelemetry's own package decodes: a line of JSON for each span."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


def value(any_value):
    kind = any_value.WhichOneof("value")
    found = getattr(any_value, kind)
    return [value(one) for one in found.values] if kind == "array_value" else found


def told(span, service):
    attributes = {one.key: value(one.value) for one in span.attributes}
    return {
        "service": service,
        "name": span.name,
        "trace": span.trace_id.hex(),
        "parent": span.parent_span_id.hex(),
        "kind": span.kind,
        "status": span.status.code,
        "began": span.start_time_unix_nano,
        "ended": span.end_time_unix_nano,
        "attributes": attributes,
    }


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        data = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            service = {one.key: value(one.value) for one in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    print(json.dumps(told(span, service)), flush=True)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        """No access log."""


with HTTPServer(("127.0.0.1", 0), Receiver) as server:
    print(server.server_port, flush=True)
    server.serve_forever()
