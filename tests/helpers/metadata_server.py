"""Serves the metadata of a cloud VM on this machine."""

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def serve(values: Mapping[str, str]) -> Iterator[str]:
    """Yields "host:port" of a server with values by path under instance/."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = values.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
            has_header = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if text and has_header else 403)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
