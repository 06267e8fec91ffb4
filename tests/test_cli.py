"""The command line as a user meets it: real processes, real tiny bundles, exit codes, Ctrl-C, pipes and a terminal."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from eyespot.cli.chat import Chat
from eyespot.cli.main import VERBS
from test_processor import encoded, noise
from test_session import compiled, fake_model

SRC = Path(__file__).parent.parent / "src"
ENV = {**os.environ, "PYTHONPATH": str(SRC), "NO_COLOR": "1", "COLUMNS": "100"}
EYESPOT = [sys.executable, "-m", "eyespot"]


def eyespot(*arguments: str | Path, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*EYESPOT, *map(str, arguments)]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, env={**ENV, **environment}, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With eyes."""
    where = tmp_path_factory.mktemp("cli")
    models.tiny_internvl(where / "hf")
    return compiled(where / "hf", where / "bundle", ctx_size=1024)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that talks for minutes: a large context and no stop token."""
    where = tmp_path_factory.mktemp("endless")
    models.tiny_qwen2(where / "hf", max_position_embeddings=65536)
    out = compiled(where / "hf", where / "bundle", ctx_size=65536)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "stop_tokens": []}))
    return out


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(noise(200, 120), "PNG"))
    return path


def one_error_line(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"eyespot: error: .*\n", done.stderr)
    assert words in done.stderr


# Verbs


def test_threads(bundle: Path) -> None:
    """-t wins over EYESPOT_THREADS, which wins over config.json; more than there are processors work, and are told."""
    ask = ["run", "-m", bundle, "-p", "hi", "-n", "2", "--temp", "0", "--no-stats"]
    done = eyespot(*ask)
    assert (done.returncode, done.stderr) == (0, "")
    usable = len(os.sched_getaffinity(0))
    for flags, environment in ((["-t", "64"], {"EYESPOT_THREADS": "1"}), ([], {"EYESPOT_THREADS": "64"})):
        many = eyespot(*ask, *flags, **environment)
        assert (many.returncode, many.stdout) == (0, done.stdout)
        assert many.stderr == f"eyespot: note: 64 threads on {usable} processors are slower than {usable}\n"
    for verb in (ask, ["chat", "-m", bundle], ["compile", bundle, "-o", bundle / "out"]):
        refused = eyespot(*verb, "-t", "0")
        assert refused.returncode == 2, refused.stderr
        assert "--threads" in refused.stderr
    one_error_line(eyespot(*ask, "-t", "257"), 2, "threads is out of range; found 257")
    one_error_line(eyespot(*ask, EYESPOT_THREADS="0"), 2, "EYESPOT_THREADS; found 0; expected 1 to 256")


def test_help_lists_all_verbs_and_each_has_its_own() -> None:
    listed = eyespot("--help")
    assert listed.returncode == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", listed.stdout, re.MULTILINE)
        own = eyespot(verb, "--help")
        assert own.returncode == 0
        assert f"Usage: eyespot {verb}" in own.stdout
        assert "--json" in own.stdout


def test_only_the_chosen_verb_is_imported() -> None:
    code = (
        "import sys; from eyespot.cli.main import main\ntry: main(['doctor', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith('eyespot.cli.') or m in ('numpy', 'rich.console')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True)
    assert done.stdout.splitlines()[-1] == "['eyespot.cli.flags', 'eyespot.cli.main', 'eyespot.cli.doctor']"


def test_version_and_usage_errors(bundle: Path) -> None:
    from eyespot import __version__

    assert eyespot("--version").stdout == f"eyespot {__version__}\n"
    one_error_line(eyespot("rnu"), 2, "did you mean 'run'?")
    for wrong in (["run"], ["run", "--nonsense"], ["run", "-m", bundle, "-p", "x", "-n", "0"], []):
        done = eyespot(*wrong)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


WORDS = (  # noqa: SIM905 - as it is typed
    "--debug -m --model -p --prompt=x --image a.png -n 7 0 --temp 0.5 --temp=.1 --raw --json --json=1 -t --seed -1 -- "
    "-n3 --top-k=4 --nonsense --help x -"
).split()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_both_readers_of_flags_agree(words: list[str]) -> None:
    from eyespot.cli import run
    from eyespot.cli.flags import for_typer, quick

    words = ["-m", "bundle", "-p", "hi", *words]
    given = quick(run.command, words)
    if given is None:  # typer's to judge
        return
    seen: list[dict[str, object]] = []

    app = typer.Typer()
    app.command()(for_typer(run.command, lambda **values: seen.append(values)))
    app(words, standalone_mode=False)
    defaults = {name: p.default for name, p in inspect.signature(run.command).parameters.items()}
    assert seen == [{**defaults, "debug": False, **given}]


def test_debug_shows_the_traceback() -> None:
    for words in (["run", "-m", "/nowhere", "-p", "x", "--debug"], ["--debug", "inspect", "/nowhere"],
                  ["inspect", "/nowhere", "--debug"]):  # fmt: skip
        done = eyespot(*words)
        assert "Traceback" in done.stderr
        assert done.returncode == 2
    assert "--debug" in eyespot("compile", "--help").stdout
    one_error_line(eyespot("run", "-m", "/nowhere", "-p", "--debug"), 2, "no such bundle")


def test_completion_offers_verbs_and_flags() -> None:
    done = eyespot(_EYESPOT_COMPLETE="complete_bash", COMP_WORDS="eyespot ch", COMP_CWORD="1")
    assert "chat" in done.stdout.split()
    done = eyespot(_EYESPOT_COMPLETE="complete_bash", COMP_WORDS="eyespot run --ima", COMP_CWORD="2")
    assert "--image" in done.stdout.split()


def test_doctor(bundle: Path) -> None:
    done = eyespot("doctor", "--json", EYESPOT_ISA="scalar")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["engine"]["isas"]["scalar"] is True
    assert found["engine"]["chosen"] == "scalar"
    assert found["environment"]["EYESPOT_ISA"] == "scalar"
    assert found["threads"]["usable"] >= 1
    assert found["libraries"]["numpy"]
    plain = eyespot("doctor")
    assert plain.returncode == 0
    assert "threads" in plain.stdout
    import eyespot as library

    with library.load(bundle) as model:  # what doctor says is what the engine does
        said = json.loads(eyespot("doctor", "--json").stdout)
        assert model.engine.info["isa"] == said["engine"]["chosen"]
        assert model.engine.info["threads"] == said["threads"]["chosen"]
    for text in ("0", "x", "-1", "99999"):
        bad = eyespot("doctor", EYESPOT_THREADS=text)
        assert bad.returncode == 1
        assert f"EYESPOT_THREADS={text} cannot be honoured; expected 1 to 256" in bad.stdout
    assert json.loads(eyespot("doctor", "--json", EYESPOT_THREADS="3").stdout)["threads"]["chosen"] == 3
    bad = eyespot("doctor", EYESPOT_ISA="abacus")
    assert bad.returncode == 1
    assert "cannot be honoured" in bad.stdout


# run


def test_run_streams_to_stdout_and_explains_on_stderr(bundle: Path, picture: Path) -> None:
    done = eyespot("run", "-m", bundle, "-p", "What is it?", "--image", picture, "-n", "9", "--temp", "0")
    assert done.returncode == 0
    assert re.search(
        r"cat.png 200x120 -> 168x112, 7 tiles; 28 image tokens; \d+ prompt tokens; first token [\d.]+ s; "
        r"\d+ tokens( at [\d.]+ tokens/s)?; stopped: (length|stop)\n",
        done.stderr,
    )
    record = json.loads(
        eyespot("run", "-m", bundle, "-p", "-", "--image", picture, "-n", "9", "--json", text="What is it?").stdout
    )
    assert record["text"] == done.stdout.removesuffix("\n")
    assert record["image_tokens"] == 28
    assert record["images"][0]["resized"] == [168, 112]
    assert record["timings"]["first_token_s"] > 0
    quiet = eyespot("run", "-m", bundle, "-p", "x", "-n", "2", "--no-stats")
    assert quiet.stderr == ""


def test_flags_reach_the_sampler(bundle: Path) -> None:
    def say(*flags: str) -> str:
        return eyespot("run", "-m", bundle, "-p", "Hello", "-n", "12", "--no-stats", *flags).stdout

    hot = ("--temp", "2.0", "-s")
    assert say(*hot, "1") == say(*hot, "1") != say(*hot, "2")
    assert say(*hot, "1", "--top-k", "1") == say("--temp", "0")
    assert say("--temp", "0", "--repeat-penalty", "30") != say("--temp", "0")
    assert say("--system", "You are a pirate.") != say()
    assert say("--raw") != say()


def test_run_failures(bundle: Path, picture: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("no picture at all")
    run = ("run", "-m", bundle, "-p", "hi")
    one_error_line(eyespot("run", "-m", tmp_path / "none", "-p", "hi"), 2, "no such bundle")
    one_error_line(eyespot("run", "-m", tmp_path, "-p", "hi"), 2, "not a bundle")
    one_error_line(eyespot(*run, "--image", tmp_path / "none.png"), 2, "No such file")
    one_error_line(eyespot(*run, "--image", text), 1, "not a picture")
    one_error_line(eyespot(*run, "-c", "64"), 1, "does not fit the context")
    one_error_line(eyespot(*run, "-c", "4096"), 2, "ctx_size")
    one_error_line(eyespot(*run, "--isa", "abacus"), 2, "abacus")
    one_error_line(eyespot(*run, "--top-p", "7"), 2, "top_p")
    one_error_line(eyespot(*run, "--raw", "--system", "x"), 2, "--raw takes no --system")
    one_error_line(eyespot("run", "-m", bundle, "-p", "<image> <image>", "--image", picture), 2, "2 <image> for 1")


def test_a_model_without_eyes_says_so(endless: Path, picture: Path) -> None:
    one_error_line(eyespot("run", "-m", endless, "-p", "hi", "--image", picture), 2, "no eyes")


def test_a_closed_pipe_is_quiet(endless: Path) -> None:
    process = subprocess.Popen(
        [*EYESPOT, "run", "-m", endless, "-p", "hi", "-n", "50000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=ENV,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == b""


def test_ctrl_c_stops_an_answer(endless: Path) -> None:
    process = subprocess.Popen(
        [*EYESPOT, "run", "-m", endless, "-p", "hi", "-n", "60000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=ENV,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"stopped: cancelled" in errors
    assert time.monotonic() - started < 5


def test_ctrl_c_stops_a_long_prefill(endless: Path) -> None:
    process = subprocess.Popen(
        [*EYESPOT, "run", "-m", endless, "-p", "-", "--isa", "scalar", "-t", "1"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"abc " * 15_000)
    process.stdin.close()
    time.sleep(2)
    if process.poll() is not None:
        pytest.fail("the prefill ended before it could be interrupted")
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(30) == 130
    assert time.monotonic() - started < 2


# chat


def test_chat_from_a_pipe(bundle: Path, picture: Path) -> None:
    lines = [
        f"/image '{picture}'",
        "What is it?",
        "And then?",
        "/history",
        "/drop",
        "/drop",
        "/drop",
        "/reset",
        "Hi",
        "/quit",
        "never",
    ]
    done = eyespot("chat", "-m", bundle, "-n", "8", text="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 3
    assert "cat.png 200x120 -> 168x112, 7 tiles, 28 tokens" in done.stderr
    assert re.search(r"\(\d+ reused\)", done.stderr)
    assert "user: [cat.png] What is it?\nassistant: " in done.stderr
    assert done.stderr.count("dropped the last turn") == 2
    assert "nothing to drop" in done.stderr
    assert "never" not in done.stderr
    records = eyespot("chat", "-m", bundle, "-n", "8", "--json", text="one\ntwo\n")
    assert [set(json.loads(line)) > {"text", "stop_reason"} for line in records.stdout.splitlines()] == [True, True]


def test_chat_goes_on_after_a_failed_line(bundle: Path) -> None:
    done = eyespot("chat", "-m", bundle, "-n", "4", "-c", "300", text=f"/image none.png\n{'abc ' * 300}\nhi\n")
    assert done.returncode == 1  # a script sees that something failed
    assert done.stderr.count("eyespot: error: ") == 2
    assert "does not fit the context" in done.stderr
    assert done.stderr.count("stopped: ") == 1


class Terminal:
    """A process that has a terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        import pty

        self.master, slave = pty.openpty()
        attach = "import os, runpy, sys; os.open(os.ttyname(0), os.O_RDWR); sys.argv[0] = 'eyespot'; "
        command = [sys.executable, "-c", attach + "runpy.run_module('eyespot', run_name='__main__')", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=ENV, start_new_session=True
        )
        os.close(slave)
        self.seen = ""

    def expect(self, words: str, seconds: float = 30) -> None:
        """Reads until `words` come after what was expected before."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            left = end - time.monotonic()
            if left < 0 or not select.select([self.master], [], [], left)[0]:
                pytest.fail(f"no {words!r} in {self.seen[-500:]!r}")
            try:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
            except OSError:
                pytest.fail(f"ended without {words!r}: {self.seen[-500:]!r}")
        self.seen = self.seen.partition(words)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@pytest.fixture
def terminal(endless: Path) -> Iterator[Terminal]:
    opened = Terminal("chat", "-m", endless, "-n", "60000")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)


def test_ctrl_c_at_a_terminal_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("hello")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.expect("stopped: cancelled")
    terminal.expect("> ")
    terminal.type("/history\n")
    terminal.expect("user: hello")
    terminal.expect("assistant: ")
    terminal.expect("> ")
    terminal.type("again\n")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.expect("reused")
    terminal.expect("stopped: cancelled")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_keeps_the_conversation(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("hello")
    time.sleep(0.5)
    terminal.type("\x03\x03")
    terminal.expect("stopped: cancelled")
    # Readline may lose one while it sets the terminal up, and in a burst some come while another is being handled.
    for pause in [0.2] * 10 + [0.0001] * 3000:
        os.kill(terminal.process.pid, signal.SIGINT)
        time.sleep(pause)
    terminal.expect("/quit or Ctrl-D leaves")
    terminal.type("/history\n")
    terminal.expect("user: hello")
    terminal.expect("> ")
    terminal.type("/quit\n")
    assert terminal.process.wait(10) == 0


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """What a terminal shows when these lines are typed to a chat with a made-up engine."""

    def type_all(lines: list[str]) -> str:
        screen, rest = Screen(), iter(lines)

        def read(prompt: str) -> str:
            if (line := next(rest, None)) is None:
                raise EOFError
            return line

        monkeypatch.setattr("sys.stdin", screen)
        monkeypatch.setattr("sys.stdout", screen)
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr("builtins.input", read)
        Chat(fake_model(tmp_path).chat(), {"max_tokens": 8, "seed": 1}, False, True).run()
        return screen.getvalue()

    return type_all


def test_ctrl_c_while_a_picture_is_read(typed: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eyespot.images.load", pressed)
    shown = typed(["hello", "/image cat.png", "/history"])
    assert "/quit or Ctrl-D leaves" in shown
    assert shown.index("Ctrl-D leaves") < shown.index("user: hello")


def test_no_line_of_a_chat_steers_the_terminal(typed: Callable[[list[str]], str], tmp_path: Path) -> None:
    evil = tmp_path / "a\x1b]0;b.png"
    evil.write_bytes(encoded(noise(60, 60), "PNG"))
    shown = typed([f"/image {evil}", "/history", "what \x1b[2J\x9b is it?", "/history"])
    assert r"a\x1b]0;b.png 60x60" in shown
    assert "user: [a" in shown
    assert "what [2J is it?" in shown
    assert all(c.isprintable() or c in "\n\t" for c in shown)


def test_commands_of_a_chat(bundle: Path, picture: Path) -> None:
    lines = [f"/image {picture}", "/history", "/drop", "/drop", "/rest", "//quit now", "/history"]
    done = eyespot("chat", "-m", bundle, "-n", "4", "--no-stats", text="\n".join(lines))
    assert done.returncode == 1
    assert "with the next message: cat.png\n0 of 1024 tokens" in done.stderr
    assert "dropped cat.png, not sent yet\nnothing to drop\n" in done.stderr
    assert re.search(r"^eyespot: error: no command '/rest'", done.stderr, re.MULTILINE)
    assert "user: /quit now\n" in done.stderr
    lines = [f"/image {picture}", "What?", f"/image {picture}", "/history"]
    done = eyespot("chat", "-m", bundle, "-n", "4", "--json", "--max-tiles", "2", text="\n".join(lines))
    answer, history = map(json.loads, done.stdout.splitlines())
    assert answer["images"][0]["tiles"] == 3
    assert "3 tiles" in done.stderr
    assert history["messages"] == [
        {"role": "user", "text": "What?", "images": ["cat.png"]},
        {"role": "assistant", "text": answer["text"], "images": []},
    ]
    assert history["next_images"] == ["cat.png"]
    assert 0 < history["tokens"] < history["ctx_size"] == 1024


def test_a_terminal_gets_no_control_characters() -> None:
    from eyespot.cli.options import show

    screen, pipe = Screen(), io.StringIO()
    for out in (screen, pipe):
        show("a\x1b[2Jb\n\tc\x9b", out)
    assert screen.getvalue() == "a[2Jb\n\tc"
    assert pipe.getvalue() == "a\x1b[2Jb\n\tc\x9b"


# Streams and paths


def shell(words: str, bundle: Path) -> subprocess.CompletedProcess[bytes]:
    """`words` in a shell, where E is eyespot and B the bundle."""
    names = {"E": f"{sys.executable} -m eyespot", "B": str(bundle)}
    return subprocess.run(["bash", "-c", words], env={**ENV, **names}, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("words", ["run -m $B -p x -n 2 --no-stats", "run -m $B -p x --json --no-stats -n 2",
                                   "inspect $B", "doctor", "run --help", "--version"])  # fmt: skip
def test_a_full_disk_is_told_in_one_line(words: str, bundle: Path) -> None:
    done = shell(f"$E {words} >/dev/full", bundle)
    assert (done.returncode, done.stderr) == (1, b"eyespot: error: No space left on device\n")


def test_closed_and_strange_streams(bundle: Path) -> None:
    for words in ("run -m $B -p x -n 2 >&-", "run -m $B -p x -n 2 2>&-", "run -m $B -p - -n 2 <&-", "chat -m $B <&-",
                  "chat -m $B <<< 'hi' >&- 2>&-", "doctor >&- 2>&- <&-"):  # fmt: skip
        done = shell(f"$E {words}", bundle)
        assert done.returncode == 0, (words, done.stderr)
        assert b"Traceback" not in done.stderr
    assert b"eyespot: error" not in shell("$E run -m nowhere -p x 2>&-", bundle).stdout
    done = shell("printf 'caf\\xe9' | LC_ALL=en_US.UTF-8 PYTHONUTF8=1 $E run -m $B -p - -n 2", bundle)
    assert done.returncode == 0, done.stderr


def test_wrong_paths_are_told_in_one_line(bundle: Path, tmp_path: Path) -> None:
    one_error_line(eyespot("inspect", "a" * 300), 2, "File name too long")
    one_error_line(eyespot("run", "-m", bundle, "-p", "x", "--image", "a" * 300), 2, "File name too long")
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; $E inspect here", bundle)
    assert re.fullmatch(rb"eyespot: error: .*\n", done.stderr)
    os.symlink(bundle, os.fsencode(tmp_path) + b"/\xff")
    done = shell(f"$E run -m {tmp_path}/$'\\xff' -p x", bundle)
    assert done.returncode == 2
    assert re.fullmatch(rb"eyespot: error: .*UTF-8\n", done.stderr)


def test_errors_of_the_system_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from eyespot.cli.main import _exit_code

    assert _exit_code(lambda: open("/nowhere"), False) == 1  # type: ignore[arg-type, return-value]  # noqa: SIM115
    assert capsys.readouterr().err == "eyespot: error: /nowhere: No such file or directory\n"
