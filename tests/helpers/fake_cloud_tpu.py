"""Google Cloud on this machine, with one TPU whose life a test writes."""

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
    """Returns a TPU as the API describes it, healthy where it is ready."""
    health = {"health": "HEALTHY"} if state == "READY" else {}
    endpoints = [{"ipAddress": f"10.0.0.{i + 2}", "port": 8470} for i in range(hosts)]
    told = {"state": state, "tensorflowVersion": version, "networkEndpoints": endpoints}
    return told | health | more


class Cloud:
    """What the server answers, what it was asked, and a clock of its own.

    Attributes:
      answers: of the API about the TPU: dicts, or numbers for HTTP errors. Each sleep
        goes to the next, and the last one stays.
      requests: "METHOD path" of all that came.
      version_code: what the version switcher answers.
      token_code: what is answered to who wants a token.
      secs: what the clock shows.
    """

    def __init__(self):
        self.answers, self.requests = collections.deque([node()]), []
        self.version_code = self.token_code = 200
        self.secs, self.sleeps = 0.0, []

    def say(self, *answers):
        """Sets the answers."""
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
        """All requests that would change something."""
        reads = ("GET ", "POST /token")
        return [request for request in self.requests if not request.startswith(reads)]

    def answer(self, method, path, is_known):
        """Returns code and body."""
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
        if not is_known:
            return 401, {}
        if rest.partition("?")[0] != _NODE + NAME:
            return 404, {}
        said = self.answers[0]
        return (said, {}) if isinstance(said, int) else (200, said)

    def serve_at(self, url):
        """Learns its own address."""
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
    """Yields a Cloud that cloud-tpu-client talks to, with credentials in a folder."""
    cloud = Cloud()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            is_known = self.headers["Authorization"] == "Bearer sesame"
            code, body = cloud.answer(self.command, self.path, is_known)
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
