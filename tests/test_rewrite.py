"""Prompts rewritten by chat models: a random Qwen2, and a server that speaks OpenAI's protocol."""

import functools
import http.server
import json
import re
import sys
import threading

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from oneforcing_jax.evaluation import chat, rewrite

PROMPTS = "a cat\na dog\na cat\na bird\nfish\n"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}assistant:"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """The folder of a chat model of random weights, whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("qwen")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=300, initializer_range=0.5, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def server():
    """A server; `asked` are the requests that came, `replies` what it says instead, first ones first."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][1]["content"]
            with lock:
                started.asked.append((self.path, self.headers, body))
                code, content = started.replies.pop(0) if started.replies else (200, None)
            message = {
                "role": "assistant",
                "content": f"  A long\n {prompt}.\ud800\u2028 " * (prompt != "fish"),
            }
            answer = json.dumps({"choices": [{"message": message}]}) if content is None else content
            self.send_response(code)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *args):
            pass

    lock = threading.Lock()
    started = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    started.asked, started.replies = [], []
    threading.Thread(target=started.serve_forever, args=[0.01], daemon=True).start()
    yield started
    started.shutdown()
    started.server_close()


@pytest.fixture
def command(tmp_path):
    """Runs the command on PROMPTS; gives the lines of its output."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)

    def run(*options, out="new.txt"):
        given = [f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path / out}", *options]
        rewrite.main([str(option) for option in given])
        return (tmp_path / out).read_text().splitlines()

    return run


def served_by(server, *more):
    return ["--model=m", f"--url=http://127.0.0.1:{server.server_port}/v1/", *more]


def test_a_local_model_rewrites(qwen, command, tmp_path):
    options = [f"--model={qwen}", "--tokens=12"]
    lines = command(*options)
    assert len(lines) == 5 and lines[0] == lines[2] and len(set(lines)) > 1
    assert not any(line.startswith("a ") for line in lines)
    assert command(*options, "--batch=1", out="again.txt") == lines
    assert command(*options, "--seed=7", out="other.txt") != lines
    # In batches, too, and from where a kill stopped it, although draws depend on the whole batch.
    batches = command(*options, "--batch=3", out="batches.txt")
    cache = tmp_path / "batches.txt.cache.jsonl"
    rows = cache.read_text().splitlines()
    cache.write_text("\n".join(rows[:1]) + "\n" + rows[1][:20])
    assert command(*options, "--batch=3", out="batches.txt") == batches


def test_padding_on_the_left_changes_nothing(qwen, monkeypatch):
    """Greedily: prompts of different lengths have the same answers together and alone."""
    settings = chat.Settings(str(qwen), None, 0, 8, 1)
    record = json.loads((qwen / "generation_config.json").read_text())
    try:
        (qwen / "generation_config.json").write_text(json.dumps(record | {"do_sample": False}))
        ask = chat.local(settings, "x")
    finally:
        (qwen / "generation_config.json").write_text(json.dumps(record))
    prompts = ["a", "a much longer prompt"]
    assert ask(prompts) == [ask([prompt])[0] for prompt in prompts]


def test_a_server_is_asked_once_a_prompt(server, command, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    lines = command(*served_by(server, "--batch=2"))
    assert lines == [
        "A long a cat.?",
        "A long a dog.?",
        "A long a cat.?",
        "A long a bird.?",
        "fish",
    ]
    assert "5 prompts in" in (out := capsys.readouterr().out) and "1 unchanged: no answer" in out
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["messages"][0] == {"role": "system", "content": chat.INSTRUCTION}
    assert (body["model"], body["seed"], body["max_tokens"]) == ("m", 42, 512)
    assert len(server.asked) == 4
    # The same command asks nothing; another instruction asks for all.
    assert command(*served_by(server)) == lines and len(server.asked) == 4


def test_an_interrupted_command_goes_on(server, command, tmp_path):
    server.replies = [(200, None), (400, "no")]
    with pytest.raises(
        SystemExit, match="error: .*chat/completions: expected an answer, found 400"
    ):
        command(*served_by(server))
    assert not (tmp_path / "new.txt").exists()
    # The last line of what was kept is cut, as by a kill: that prompt is asked again.
    cache = tmp_path / "new.txt.cache.jsonl"
    cache.write_text(cache.read_text() + '{"key": "')
    assert len(command(*served_by(server))) == 5
    asked = [body["messages"][1]["content"] for _, _, body in server.asked]
    assert asked == ["a cat", "a dog", "a dog", "a bird", "fish"]
    assert (
        command(*served_by(server), out="new.txt")[0] == "A long a cat.?" and len(server.asked) == 5
    )


def test_a_busy_server_is_asked_again(server, command, monkeypatch):
    monkeypatch.setattr(chat, "PAUSES", (0, 0))
    server.replies = [(503, "busy"), (429, "slow down")]
    assert len(command(*served_by(server))) == 5 and len(server.asked) == 6
    server.replies = [(503, "busy")] * 3
    with pytest.raises(SystemExit, match="found 503"):
        command(*served_by(server, "--seed=1"))


def test_bad_input_is_one_line(server, command, qwen, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "PAUSES", ())
    plain = tmp_path / "plain"
    transformers.AutoTokenizer.from_pretrained(qwen, chat_template="").save_pretrained(plain)
    transformers.AutoModelForCausalLM.from_pretrained(qwen).save_pretrained(plain)
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "no.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("x = (\n")
    cases = [
        (["--model=m", "--url=ftp://x"], "--url: expected http://"),
        (["--model=m", "--url=http://[x"], "--url: expected http://"),
        (["--model=m", "--url=http://127.0.0.1:9"], "expected an answer, found .*refused"),
        ([f"--model={tmp_path / 'nowhere'}"], "--model: expected a folder or a repository"),
        ([f"--model={plain}"], "expected a chat model, found no chat template"),
        (served_by(server, "--instruction=nowhere.txt"), "--instruction: expected a file"),
        (
            served_by(server, f"--instruction={tmp_path / 'no.py'}"),
            "expected text in UTF-8, or Python",
        ),
        (
            served_by(server, f"--instruction={tmp_path / 'bad.py'}"),
            "expected text in UTF-8, or Python",
        ),
        (served_by(server, "--batch=0"), "--batch: expected a whole number from 1"),
    ]
    for options, message in cases:
        with pytest.raises(SystemExit) as caught:
            command(*options)
        line = str(caught.value)
        assert re.match(f"error: .*{message}", line) and "\n" not in line, line
    with (
        monkeypatch.context() as without,
        pytest.raises(SystemExit, match=r"oneforcing_jax\[torch,wan\]"),
    ):
        without.setitem(sys.modules, "transformers", None)
        command("--model=m")
    for content in ("<html>", "{}", '{"choices": [{"message": {"content": null}}]}'):
        server.replies = [(200, content)]
        with pytest.raises(SystemExit, match="expected an answer with choices, found"):
            command(*served_by(server))


def test_wans_instruction_is_read_from_its_code(tmp_path):
    """Without running it."""
    code = tmp_path / "prompt_extend.py"
    code.write_text(
        "import nothing\nLM_EN_SYS_PROMPT = \\\n  '''one\\n''' \\\n  '''two'''\n1 / 0\n"
    )
    assert chat.instruction_of(code) == "one\ntwo"
    (tmp_path / "own.txt").write_text(" Be brief.\n")
    own = functools.partial(chat.instruction_of, tmp_path / "own.txt")
    assert own() == "Be brief." and chat.instruction_of(None) == chat.INSTRUCTION
    keys = {chat.Settings("m", None, 42, 512, 1).key(text) for text in (own(), chat.INSTRUCTION)}
    assert len(keys) == 2
