"""A cloud VM's metadata server on this machine, which says what a test wants."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serve(said):
    """Yields "host:port" of a server of {path under instance/: text}."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = said.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
            is_asked_right = self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if text and is_asked_right else 403)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
