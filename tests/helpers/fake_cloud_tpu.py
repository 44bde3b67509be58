"""Serves the Cloud TPU API on this machine, with one TPU that a test controls."""

import collections
import contextlib
import http.server
import json
import threading

import cloud_tpu_client.client
import oauth2client

NAME, ZONE, PROJECT = "my-tpu", "here-1a", "mine"
_NODE = f"projects/{PROJECT}/locations/{ZONE}/nodes/"
_METHOD = {
    "id": "tpu.projects.locations.nodes.get",
    "path": "v1/{+name}",
    "httpMethod": "GET",
    "response": {"$ref": "Node"},
    "parameters": {"name": {"type": "string", "required": True, "location": "path"}},
}


def node(state="READY", version="2.20.0", hosts=1, **more):
    """Returns the API's description of a TPU, which is healthy if it is ready."""
    health = {"health": "HEALTHY"} if state == "READY" else {}
    endpoints = [{"ipAddress": f"10.0.0.{i + 2}", "port": 8470} for i in range(hosts)]
    description = {
        "state": state,
        "tensorflowVersion": version,
        "networkEndpoints": endpoints,
    }
    return description | health | more


class Cloud:
    """The answers and requests of the server, and a clock.

    Attributes:
      answers: The API's answers for the TPU: dicts, or numbers for HTTP errors. Each
        sleep moves to the next answer; the last one remains.
      requests: "METHOD path" of all requests.
      version_code: The HTTP code of the version switcher.
      token_code: The HTTP code of requests for a token.
      secs: The time of the clock, in seconds.
      sleeps: The durations of all sleeps, in seconds.
    """

    def __init__(self):
        self.answers = collections.deque([node()])
        self.requests = []
        self.version_code = self.token_code = 200
        self.secs = 0.0
        self.sleeps = []

    def set_answers(self, *answers):
        """Sets the answers of the API."""
        self.answers = collections.deque(answers)

    def clock(self):
        return self.secs

    def sleep(self, secs):
        self.secs += secs
        self.sleeps.append(secs)
        if len(self.answers) > 1:
            self.answers.popleft()

    @property
    def changes(self):
        """The requests that would change something."""
        reads = ("GET ", "POST /token")
        return [request for request in self.requests if not request.startswith(reads)]

    def answer(self, method, path, is_authorized):
        """Returns the HTTP code and the body."""
        self.requests.append(f"{method} {path}")
        head, _, rest = path.lstrip("/").partition("/")
        if head == "token":
            return self.token_code, {"access_token": "sesame", "expires_in": 3600}
        if head == "computeMetadata":
            texts = {"project-id": PROJECT, "zone": f"projects/7/zones/{ZONE}"}
            return 200, texts[rest.rpartition("/")[2]]
        if head == "discovery":
            return 200, self._discovery
        if head == "requestversion":
            return self.version_code, ""
        if not is_authorized:
            return 401, {}
        if rest.partition("?")[0] != _NODE + NAME:
            return 404, {}
        answer = self.answers[0]
        return (answer, {}) if isinstance(answer, int) else (200, answer)

    def serve_at(self, url):
        """Sets the address in the API's discovery document."""
        nodes = {"nodes": {"methods": {"get": _METHOD}}}
        self._discovery = {
            "name": "tpu",
            "version": "v1",
            "rootUrl": url,
            "servicePath": "",
            "schemas": {"Node": {"id": "Node", "type": "object"}},
            "resources": {
                "projects": {"resources": {"locations": {"resources": nodes}}}
            },
        }


@contextlib.contextmanager
def serve(monkeypatch, folder):
    """Yields a Cloud that cloud-tpu-client uses, with credentials in a folder."""
    cloud = Cloud()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            is_authorized = self.headers["Authorization"] == "Bearer sesame"
            code, body = cloud.answer(self.command, self.path, is_authorized)
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            text = body if isinstance(body, str) else json.dumps(body)
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        cloud.serve_at(f"{url}/")
        _point_at(url, monkeypatch, folder)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield cloud
        server.shutdown()


def _point_at(url, monkeypatch, folder):
    client = cloud_tpu_client.client
    switcher = f"{url}/requestversion/{{}}"
    monkeypatch.setattr(client, "_VERSION_SWITCHER_ENDPOINT", switcher)
    monkeypatch.setattr(client, "_GCE_METADATA_ENDPOINT", url)
    monkeypatch.setattr(oauth2client, "GOOGLE_TOKEN_URI", f"{url}/token")
    monkeypatch.setattr(oauth2client.client, "NO_GCE_CHECK", "True")
    key = {
        "type": "authorized_user",
        "client_id": "a",
        "client_secret": "b",
        "refresh_token": "c",
    }
    (folder / "key.json").write_text(json.dumps(key))
    variables = {
        "TPU_API_DISCOVERY_URL": f"{url}/discovery/{{api}}/{{apiVersion}}",
        "GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json"),
        "CLOUDSDK_CONFIG": str(folder),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
