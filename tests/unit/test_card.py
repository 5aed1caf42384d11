"""Model cards, and pushing a stage to a stand-in of the hub."""

import base64
import hashlib
import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import HfApi

from cores.errors import UserError
from cores.run.card import card, license_in
from scripts.push import main as push

SPLIT = {"path": "pairs.jsonl", "read": 1200, "used": 1100}
REWARD: dict[str, Any] = {
    "stage": "reward",
    "reward_mean": 0.25,
    "parents": {"sft": {"folder": "runs/a/sft", "files": {}}},
    "data": {"sources": [{"train": SPLIT, "weight": 2.0}]},
    "metrics": {"pairs": 90, "accuracy": 0.8, "accuracy_longer": 0.5, "correlation": None},
    "config": {"output_dir": "runs/a", "model": {"path": "me/base"}, "template": {"kind": "roles"}},
}


def head(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_tells_data_figures_licences_and_limits(tmp_path: Path) -> None:
    text = card(REWARD)
    assert head(text)["pipeline_tag"] == "text-classification"
    assert "license" not in head(text)
    for words in ("1,100 of 1,200 rows", "of them ordered rightly: 0.8", "## Limits", "0.2500"):
        assert words in text
    assert "the folder is wrong: TRL joins" in text
    chat = {**REWARD["config"], "template": {"kind": "chat"}}
    assert "as far as the chat template ends" in card({**REWARD, "config": chat})
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nlicense: no\n")
    local = {**REWARD["config"], "model": {"path": str(tmp_path)}}
    parents = {"base": {"hub": "me/base", "commit": "c"}}
    text = card({**REWARD, "config": local, "parents": parents})
    assert head(text)["license"] == "mit"
    assert head(text)["base_model"] == "me/base"
    (tmp_path / "README.md").write_text("# a model\nlicense: mit\n")
    assert "license" not in head(card({**REWARD, "config": local}))


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("license: apache-2.0 # see below", "apache-2.0"),
        ("license:\n- mit", "mit"),
        ("license:\n- mit\n- gpl", None),
        ("license:\nlanguage: en", None),
        ("language: en", None),
        ("license: [", None),
    ],
)
def test_the_licence_is_the_head_s(head: str, found: str | None) -> None:
    """No next key's name, no dash of a list, and nothing of the text below."""
    assert license_in(f"---\n{head}\n---\n# A model\n\nlicense: other\n") == found


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a commit of small files takes."""

    got: ClassVar[dict[str, bytes]] = {}
    seen: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"]))
        url = f"http://{self.headers['Host']}/me/model"
        if self.path == "/api/repos/create":
            self.got["create"] = body
            return self.answer({"url": url})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer({"files": [{"path": path, **told} for path in paths]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.got[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{url}/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "siblings": []})

    def answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **k: HfApi(endpoint=endpoint, **k))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Hub.got.clear()
    Hub.seen.clear()
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "reward"
    (folder / "adapter").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "README.md").write_text(card(REWARD))
    for name in (
        "stage.json", "config.json", "model.safetensors", "adapter/adapter_config.json",
        "samples.jsonl", "held_out_samples.jsonl", "metrics.jsonl", "log.txt",
        "checkpoints/model.safetensors",
    ):  # fmt: skip
        (folder / name).write_text(json.dumps({"file": name}))
    return folder


def test_what_is_pushed(stage: Path, hub: type[Hub], monkeypatch, capsys) -> None:
    """The model, its card with the licence, stage.json; neither samples nor logs."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    push([str(stage), "me/model", "--license", "mit"])
    assert b"private" in hub.got.pop("create")
    assert set(hub.got) == {
        "README.md", "stage.json", "config.json", "model.safetensors",
        "adapter/adapter_config.json",
    }  # fmt: skip
    assert head(hub.got["README.md"].decode())["license"] == "mit"
    assert {token for _, token in hub.seen} == {"Bearer hf_x"}
    assert "pushed 5 files to" in capsys.readouterr().out
    push([str(stage), "me/model"])  # the card knows the licence now


def test_no_place_of_this_machine_is_pushed(stage: Path, hub: type[Hub], monkeypatch) -> None:
    """stage.json, card and configurations name files alone; what is here stays as it is, texts that
    look like places too, and hashes are those of what is pushed."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    record = json.loads(json.dumps(REWARD)) | {
        "command": "python stage2_rm.py --output_dir /home/me/run --model.path=/home/me/base "
        """--ppo.rewards '{"/home/me/rules.py:polite":1.0}' --template.user.suffix ' /no_think' """
        "--data.sft.path=~/rows.jsonl ../b.jsonl '/home/me/my data/c.jsonl'",
        "files": {"adapter/adapter_config.json": "0"},
        "reward_files": {"/home/me/rules.py": "1"},
    }
    record["config"] |= {
        "output_dir": "/home/me/my run", "model": {"path": "~/models/base"},
        "template": {"kind": "roles", "user": {"suffix": "/no_think"}},
        "data": {"sft": {"path": "../me/rows.jsonl", "sources": [{"path": "owner/rows"}]}},
    }  # fmt: skip
    (stage / "stage.json").write_text(json.dumps(record))
    (stage / "README.md").write_text(card(record))
    (stage / "adapter/adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/home/me/base"})
    )
    push([str(stage), "me/model", "--license", "mit"])
    told = b"".join(hub.got.values()).decode()
    assert not any(place in told for place in ("/home", "/me/", "~/", "..", str(stage.parent)))
    found = json.loads(hub.got["stage.json"])
    assert found["config"]["template"] == record["config"]["template"]
    assert found["config"]["data"]["sft"]["sources"] == [{"path": "owner/rows"}]
    assert found["config"]["output_dir"] == "my run"
    assert shlex.split(found["command"])[3:] == [
        "run", "--model.path=base", "--ppo.rewards", '{"rules.py:polite":1.0}',
        "--template.user.suffix", " /no_think",
        "--data.sft.path=rows.jsonl", "b.jsonl", "c.jsonl",
    ]  # fmt: skip
    pushed = hashlib.sha256(hub.got["adapter/adapter_config.json"]).hexdigest()
    assert found["files"]["adapter/adapter_config.json"] == pushed
    assert json.loads((stage / "stage.json").read_text()) == record


def test_a_hub_that_is_away(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One paragraph, of a stage without a card too."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **k: HfApi("http://127.0.0.1:9", **k))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (stage / "README.md").unlink()
    (stage / "stage.json").write_text(json.dumps(REWARD))
    with pytest.raises(UserError, match=r"me/model: not pushed.*refused"):
        push([str(stage), "me/model", "--license", "mit"])


def test_what_is_not_pushed(stage: Path, hub: type[Hub], monkeypatch, tmp_path: Path) -> None:
    """No token, no licence, no stage: refused before the hub is asked."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for words, says in (
        ([str(stage), "me/model", "--license", "mit"], "no token for the hub"),
        ([str(stage), "me/model"], "--license: the model's licence is not known"),
        ([str(tmp_path), "me/model"], "Give the folder of a finished stage"),
    ):
        with pytest.raises(UserError, match=says):
            push(words)
    assert hub.seen == []
