"""The command line, as scripts and people rely on it: real processes, their exit codes, what they print and what they leave."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aprendiz import registry
from aprendiz.files import home
from aprendiz.knobs import fit, kind_words, knobs
from aprendiz.micro.pictures import write_pictures
from aprendiz.run import Run
from aprendiz.settings import SECTIONS
from aprendiz.views.flags import flags
from aprendiz.views.terminal import Screen, clock
from aprendiz.worker.messages import EVENTS

ROOT = Path(__file__).resolve().parent.parent
MICRO = ROOT / "aprendiz" / "micro" / "base"
PATIENCE = 240.0
Answers = Callable[[str, object], None]
SMALL = ("--resolution", "64", "--rank", "1", "--targets", "attention", "--device", "cpu", "--sampler-steps", "1")
# Put into a process by Python itself at its start: our own fault, where there is none.
FAULT = """
import importlib.abc, importlib.util, sys
class Fault(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        execute = found.loader.exec_module
        def with_fault(module):
            execute(module)
            setattr(module, {function!r}, lambda *a, **k: 1 / 0)
        found.loader.exec_module = with_fault
        return found
sys.meta_path.insert(0, Fault())
"""


@pytest.fixture(autouse=True)
def own_home(user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has its own user's folder and working directory."""
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "fish", "fish", count=2)
    return tmp_path / "fish"


def aprendiz(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one command as a user does, from the current folder."""
    paths = os.pathsep.join(filter(None, [(environment or {}).get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run([sys.executable, "-m", "aprendiz", *map(str, arguments)], capture_output=True, encoding="utf-8",
                          check=False, timeout=PATIENCE, env={**os.environ, **(environment or {}), "PYTHONPATH": paths})


def refused(code: int, *arguments: object) -> str:
    """What a refused command said; nothing on standard output, no traceback, nothing left behind."""
    before = own_files()
    done = aprendiz(*arguments)
    assert done.returncode == code, done
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert own_files() == before
    return done.stderr.strip()


def own_files() -> list[Path]:
    """What lies in the current folder, less the user's folder."""
    return sorted(file for file in Path().rglob("*") if "user" not in file.parts)


# What is told to whom


@pytest.mark.parametrize(("arguments", "answer"), [
    ((), "the following arguments are required: COMMAND"),
    (("trian", "lora"), "There is no command trian. Did you mean train?"),
    (("evaluate", "run"), "invalid choice: 'evaluate'"),
    (("train",), "the following arguments are required: METHOD|JOB"),
    (("train", "lora", "--base", "micro"), "No pictures were given. Name their folder with --data FOLDER."),
    (("train", "lora", "--data", "fish", "--learning-rat", "1"),
     "There is no flag --learning-rat. Did you mean --learning-rate?"),
    (("train", "lora", "--data", "fish", "--rank"), "argument --rank: expected one argument"),
    (("train", "lora", "more", "--data", "fish"), "more is one argument too many."),
    (("tell", "run", "halt"), "invalid choice: 'halt'"),
    (("generate", "--base", "micro"), "the following arguments are required"),
    (("generate", "--base", "micro", "--prompt", "a cat", "--out", ""), "argument --out: it is empty."),
    (("generate", "--base", "micro", "--prompt", "a \udcff cat"), "'a \\udcff cat' holds bytes that are no UTF-8."),
])
def test_unknown_commands_and_flags_and_missing_arguments_exit_with_2(arguments: Sequence[str], answer: str) -> None:
    assert answer in refused(2, *arguments)


@pytest.mark.parametrize(("given", "answer"), [
    (("--set", "method.rnak=8"), "There is no setting 'method.rnak'. Did you mean 'rank'?"),
    (("--set", "learning_rat=1e-4"), "There is no setting 'optimizer.learning_rat'. Did you mean 'learning_rate'?"),
    (("--set", "rank"), "'rank' has no '='"),
    (("--rank", "0"), "method.rank is 0. It must lie between 1 and 1024."),
    (("--rank", "many"), "method.rank is 'many', but it takes a whole number."),
    (("--learning-rate", "5"), "optimizer.learning_rate is 5.0. It must lie between 0 and 1."),
    (("--learning-rate", "0.1:x"), "optimizer.learning_rate is '0.1:x'. Write a number, or rates"),
    (("--steps", "-1"), "training.steps is -1. It must"),
    (("--steps", "5", "--epochs", "2"), "Both steps (5) and epochs (2.0) are set."),
    (("--optimizer", "adamv"), "Did you mean 'adamw'?"),
    (("--name", "../up"), "The name '../up' cannot be a file's name everywhere."),
    (("--resolution", "100"), "resolution is 100, which is no multiple of 8. The nearest is 96."),
    (("--data", ""), "data.path is empty. Name a file or a folder, or leave it out."),
    (("--base", ""), "base.path is empty. Name a file or a folder, or leave it out."),
    (("--base", "x" * 5000), "A path is longer than this system allows: "),
])
def test_bad_values_exit_with_1_and_one_sentence(given: Sequence[str], answer: str, pictures: Path, answers: Answers) -> None:
    told = refused(1, "train", "lora", "--data", "fish", *given)
    assert answer in told
    assert len(told.splitlines()) == 1
    answers("train lora " + " ".join(given), told)


def test_a_run_that_is_refused_late_names_no_folder_that_is_gone_again(pictures: Path) -> None:
    told = refused(1, "train", "lora", "--data", "fish", "--base", "fish/fish-01.png")
    assert "fish-01.png is no .safetensors file" in told


def test_every_problem_is_told_at_once(pictures: Path) -> None:
    told = refused(1, "train", "lora", "--data", "fish", "--rank", "0", "--learning-rate", "5", "--set", "training.sede=1")
    assert len(told.splitlines()) == 3


@pytest.mark.parametrize(("name", "text", "answer"), [
    ("none.toml", None, "There is no job none.toml. Check the path."),
    ("fish", None, "fish is no job: these are files that end in .toml or .json."),
    ("job.txt", 'data = "fish"', "job.txt is no job: these are files that end in .toml or .json."),
    ("broken.toml", "steps = = 3", "broken.toml cannot be read as a job"),
    ("broken.json", "[", "broken.json cannot be read as a job"),
    ("list.json", "[]", 'list.json holds no settings. Write them by name, such as {"data": "my-pictures"}.'),
    ("newer.json", '{"schema": 99}', "written by a newer version of Aprendiz"),
    ("job.toml", 'data = "fish"\n[method]\nrnak = 3', "There is no setting 'method.rnak'. Did you mean 'rank'?"),
    ("job.toml", 'data = "fish"\n[methud]\nrank = 3', "There is no setting 'methud'. Did you mean 'method'?"),
    ("job.toml", 'data = "nowhere"', "There is no folder"),
])
def test_job_files_that_cannot_be_used_exit_with_1(
        name: str, text: str | None, answer: str, pictures: Path, answers: Answers) -> None:
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    told = refused(1, "train", name)
    assert answer in told
    answers(f"train {name}: {text}", told.replace(str(Path.cwd()), "HERE"))


def test_all_that_a_job_names_is_looked_at_before_anything_loads(pictures: Path, answers: Answers) -> None:
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    save_file({"emb_params": np.zeros((1, 96), np.float32)}, "word.safetensors")
    vae = MICRO / "vae" / "diffusion_pytorch_model.safetensors"
    done = aprendiz("check", "lora", "--data", "fish", "--vae", "word.safetensors", "--text-encoder", vae,
                    "--continue-from", vae, "--pictures", "4", "--optimizer", "adamw8bit")
    told = [line for line in done.stderr.splitlines()[:-1] if not line.startswith("Warning")]
    assert done.returncode == 1 and "Traceback" not in done.stderr and "This can be trained" not in done.stdout
    expected = ["word.safetensors is no VAE", "lacks the text encoder", "is no LoRA", "Prior preservation needs to know"]
    expected += ["needs the package bitsandbytes"] if importlib.util.find_spec("bitsandbytes") is None else []
    assert len(told) == len(expected) and all(any(words in line for line in told) for words in expected), told
    for line in told:
        answers("check lora with a wrong VAE, text encoder, LoRA to go on from, prior and optimizer",
                line.replace(str(ROOT), "..."))


def test_all_that_is_wrong_with_a_drawing_is_told_at_once(tmp_path: Path, answers: Answers) -> None:
    save_file({"emb_params": np.zeros((1, 96), np.float32)}, "word.safetensors")
    told = refused(1, "generate", "--base", "micro", "--prompt", "a fish", "--out", "one.png", "--count", "0",
                   "--strength", "0.5", "--lora", "word.safetensors:much", "--embedding", "none.pt", "--control", "none.png",
                   "--controlnet", "none").splitlines()
    expected = ["count is 0.", "none was given. Name it with --image", "The weight 'much' of word.safetensors is no number.",
                "There is no embedding file none.pt", "There is no picture none.png. Check the path."]
    assert len(told) == len(expected) and all(any(words in line for line in told) for words in expected), told
    for line in told:
        answers("generate with nothing right", line)


def test_a_message_is_in_one_language_whole_and_in_the_log_in_english(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRENDIZ_LANGUAGE", "es")
    _, problem = fit(registry.methods()["lora"].Settings, "rank", "muchos", "method")
    assert problem is not None
    assert str(problem) == "method.rank es 'muchos', pero acepta un número entero."
    assert problem.english == "method.rank is 'muchos', but it takes a whole number."
    assert kind_words(SECTIONS["optimizer"], "learning_rate") == "un número o un texto, o nada para desactivarlo"


@pytest.mark.parametrize("arguments", [("resume", "nowhere"), ("watch", "nowhere"), ("tell", "nowhere", "stop")])
def test_a_folder_that_is_no_run_exits_with_1(arguments: Sequence[str]) -> None:
    assert "is not the folder of a run" in refused(1, *arguments)


def test_our_own_fault_exits_with_3_and_names_the_file_of_its_traceback(tmp_path: Path, pictures: Path) -> None:
    fault = tmp_path / "fault"
    fault.mkdir()
    environment = {"PYTHONPATH": str(fault)}
    planted = fault / "sitecustomize.py"
    planted.write_text(FAULT.format(module="aprendiz.commands.looking", function="settings_of"), encoding="utf-8")
    done = aprendiz("methods", "--json", environment=environment)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert str(home() / "log.txt") in done.stderr and "ZeroDivisionError" in (home() / "log.txt").read_text(encoding="utf-8")

    planted.write_text(FAULT.format(module="aprendiz.worker.attempt", function="_train"), encoding="utf-8")
    done = aprendiz("train", "lora", "--data", "fish", "--json", environment=environment)
    log = tmp_path / "output" / "aprendiz" / "fish-lora" / "log.txt"
    assert done.returncode == 3 and "Traceback" not in done.stderr + done.stdout
    assert str(log) in done.stderr and "ZeroDivisionError" in log.read_text(encoding="utf-8")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "failed" and last["bug"] is True and last["log"] == "log.txt"


# Training


def test_train_prints_its_events_and_the_same_command_answers_with_the_result(tmp_path: Path, pictures: Path) -> None:
    job = tmp_path / "jobs" / "job.toml"
    job.parent.mkdir()
    job.write_text('data = "../fish"\n[training]\nepochs = 50\n[samples]\nsample_prompts = ["a fish"]\n', encoding="utf-8")
    command = ("train", job, *SMALL, "--set", "training.steps=2", "--out", "results", "--json")
    done = aprendiz(*command)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in events} <= set(EVENTS)
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    run = Run.open(tmp_path / "results" / "aprendiz" / "fish-lora")
    assert run.state == "finished" and run.file.is_file() and events[-1]["event"] == "finished"
    settings = run.job()
    assert (settings.training.steps, settings.training.epochs, settings.method.rank) == (2, None, 1)
    assert settings.data.path is not None and Path(settings.data.path).samefile(pictures)

    again = aprendiz(*command)
    assert again.returncode == 0 and [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["finished"]
    told = aprendiz(*command[:-1])
    assert told.returncode == 0 and "This very job is done already" in told.stdout and str(run.file) in told.stdout
    typed = next(line for line in told.stdout.splitlines() if line.startswith("Draw with it: ")).removeprefix("Draw with it: ")
    assert "-m aprendiz generate --base micro --lora" in typed
    subprocess.run(typed, shell=True, check=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / "results" / "picture.png").is_file()
    assert [path.name for path in run.folder.parent.iterdir() if not path.name.startswith(".")] == ["fish-lora"]

    listed = json.loads(aprendiz("runs", "--json").stdout)
    assert listed == {"name": "fish-lora", "state": "finished", "step": 2, "steps": 2, "folder": str(run.folder)}
    watched = aprendiz("watch", run.folder, "--json")
    assert watched.returncode == 0 and [json.loads(line) for line in watched.stdout.splitlines()] == run.events()
    refusal = aprendiz("tell", run.folder, "stop")
    assert refusal.returncode == 1 and "fish-lora has finished, so nothing can be told to it" in refusal.stderr
    assert aprendiz("watch", "fish-lora", "--json").stdout == watched.stdout, "its name is enough"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C is sent to a process as a signal")
def test_ctrl_c_saves_and_stops_with_130_and_resume_goes_on(tmp_path: Path, pictures: Path) -> None:
    folder = tmp_path / "output" / "aprendiz" / "fish-lora"
    command = [sys.executable, "-m", "aprendiz", "train", "lora", "--data", "fish", "--steps", "60", *SMALL,
               "--sample-prompts", "a fish"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        end = time.monotonic() + PATIENCE
        while not (folder.exists() and any(event["event"] == "step" for event in Run.open(folder).events())):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    run = Run.open(folder)
    assert process.returncode == 130 and "Traceback" not in output + errors
    assert run.state == "stopped" and 0 < run.step < 60
    assert f"Stopped after step {run.step}. Go on with: " in output and f" -m aprendiz resume {folder}\n" in output

    done = aprendiz("resume", folder, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["step"] for event in events if event["event"] == "resumed"] == [run.step]
    assert [event["step"] for event in run.events() if event["event"] == "step"] == list(range(1, 61))
    assert run.state == "finished"


def test_bad_pictures_are_told_and_no_run_is_left(tmp_path: Path, pictures: Path, answers: Answers) -> None:
    broken = pictures / "fish-00.png"
    broken.write_bytes(broken.read_bytes()[:200])
    for command in ("train", "check"):
        done = aprendiz(command, "lora", "--data", "fish", "--steps", "2")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "fish-00.png" in done.stderr
        answers(f"{command} with a truncated picture", done.stderr.strip())
        assert not (tmp_path / "output").exists()


def test_check_tells_every_problem_of_settings_and_pictures_at_once(pictures: Path) -> None:
    (pictures / "fish-01.txt").write_bytes(b"\xff\xfe\xff")
    told = refused(1, "check", "lora", "--data", "fish", "--rank", "0")
    assert "method.rank is 0" in told and "fish-01.txt" in told


def test_check_ends_with_what_stops_the_run_and_how_much_that_is(pictures: Path, answers: Answers) -> None:
    (pictures / "fish-00.txt").rename(pictures / "stray.txt")
    told = refused(1, "check", "lora", "--data", "fish", "--rank", "0").splitlines()
    warnings = [line.startswith("Warning: ") for line in told]
    assert warnings == sorted(warnings, reverse=True) and warnings.count(True) >= 2, "what stops the run stands last"
    assert told[-1] == f"This cannot be trained yet. Errors: 1; warnings: {warnings.count(True)}."
    answers("check with warnings and errors", "\n".join(told))


def test_check_tells_that_strict_stops_at_warnings(pictures: Path) -> None:
    (pictures / "fish-00.txt").unlink()
    assert aprendiz("check", "lora", "--data", "fish", "--steps", "2").stdout.endswith("This can be trained.\n")
    done = aprendiz("check", "lora", "--data", "fish", "--steps", "2", "--strict")
    assert done.returncode == 1 and "This can be trained" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("This cannot be trained yet, because strict stops at warnings too. Errors: 0;")


# What there is


def test_every_setting_is_a_flag_once() -> None:
    there = [(flag.section, flag.name) for flag in flags().values()]
    wanted = [(section, name) for section, settings in SECTIONS.items() for name in knobs(settings)]
    wanted += [("method", name) for method in registry.methods().values() for name in knobs(method.Settings)]
    assert sorted(set(there)) == sorted(set(wanted)) and len(there) == len(set(there))


def test_methods_and_families_are_told_to_machines_with_their_settings() -> None:
    told = [json.loads(line) for line in aprendiz("methods", "--json").stdout.splitlines()]
    assert [method["name"] for method in told] == list(registry.methods())
    rank = next(setting for setting in told[0]["settings"] if setting["name"] == "rank")
    assert (rank["default"], rank["min"], rank["max"], rank["level"]) == (16, 1, 1024, "basic")
    told = [json.loads(line) for line in aprendiz("families", "--json").stdout.splitlines()]
    assert [family["name"] for family in told] == list(registry.families())


def test_methods_tells_of_each_method_its_own_settings() -> None:
    told = re.split(r"^(?=\w+: )", aprendiz("methods").stdout, flags=re.MULTILINE)
    controlnet = next(part for part in told if part.startswith("controlnet: "))
    assert "--layout diffusers|original" in controlnet and "[diffusers]" in controlnet and "LoRA file" not in controlnet
    for name in ("textual_inversion", "pivotal"):
        assert "A LoRA file of the same family to go on from" not in next(part for part in told if part.startswith(f"{name}: "))
    assert "LoRA file of the same family to go on from" in next(part for part in told if part.startswith("lora: "))


def test_families_and_methods_name_each_other() -> None:
    told = aprendiz("families").stdout.splitlines()[0]
    assert told.startswith("sdxl: ") and all(name in told for name in registry.methods())
    told = aprendiz("methods").stdout
    assert "sdxl" in told and "text_encoders" not in told, "what a family's code offers is nothing for people"


def test_titles_of_methods_are_in_the_persons_language() -> None:
    told = aprendiz("methods", environment={"APRENDIZ_LANGUAGE": "es"}).stdout
    assert "textual_inversion: Inversión textual" in told


def test_doctor_works_where_nothing_is_installed() -> None:
    script = (f"import sys; sys.path.append({str(ROOT)!r}); from aprendiz.__main__ import main; "
              "sys.exit(main(['doctor', '--json']))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1 and done.stderr == ""
    told = {finding["name"]: finding for finding in map(json.loads, done.stdout.splitlines())}
    assert told["torch"]["value"] == "missing" and told["torch"]["stops"] and "pytorch.org" in told["torch"]["remedy"]
    assert "-m pip install" in told["diffusers"]["remedy"]
    assert "GB" in told["memory"]["value"] and "GB in" in told["free disk"]["value"]


def test_a_missing_package_is_named_with_what_installs_it(answers: Answers) -> None:
    script = (f"import sys; sys.path.append({str(ROOT)!r}); from aprendiz.__main__ import main; "
              "sys.exit(main(['generate', '--base', 'micro', '--prompt', 'a fish', '--out', 'a.png']))")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1 and "-m pip install pillow" in done.stderr and "Traceback" not in done.stderr
    assert "Traceback" in (home() / "log.txt").read_text(encoding="utf-8")
    answers("generate where nothing is installed", done.stderr.strip())


def test_the_command_line_follows_the_locale() -> None:
    environment = {"APRENDIZ_LANGUAGE": "", "LC_ALL": "es_ES.UTF-8"}
    spanish, english = aprendiz("runs", environment=environment).stdout, aprendiz("runs").stdout
    assert english == "There are no runs yet.\n"
    assert spanish not in ("", english)


def test_help_of_train_names_every_flag_with_its_default() -> None:
    told = aprendiz("train", "--help", environment={"COLUMNS": "200"}).stdout
    for flag in flags():
        assert flag in told
    assert "[0.01]" in told and "adamw|adamw8bit|" in told


def test_help_tells_that_a_setting_is_empty_in_a_word() -> None:
    told = aprendiz("train", "textual_inversion", "--help", environment={"COLUMNS": "200"}).stdout
    assert "[]" not in told and told.count("[none]") >= 3


def test_help_of_what_draws_speaks_of_drawing() -> None:
    for command in ("generate", "walk"):
        told = aprendiz(command, "--help", environment={"COLUMNS": "200"}).stdout
        assert "The model to draw with" in told and "The model to teach" not in told


@pytest.mark.parametrize(("language", "words"), [
    ("es", ["uso: ", "opciones:", "argumentos:", "muestra esta ayuda y termina", "muestras [samples]:"]),
    ("pt-BR", ["uso: ", "opções:", "argumentos:", "mostra esta ajuda e termina", "amostras [samples]:"])])
def test_the_frame_of_the_help_is_in_the_persons_language(language: str, words: list[str]) -> None:
    told = aprendiz("train", "--help", environment={"COLUMNS": "200", "APRENDIZ_LANGUAGE": language}).stdout
    assert [word for word in words if word not in told] == []
    told += aprendiz("--help", environment={"APRENDIZ_LANGUAGE": language}).stdout
    assert not re.search("usage|options:|positional|this help|show program", told)


@pytest.mark.parametrize(("arguments", "answer"), [
    ((), "faltan estos argumentos: COMMAND"),
    (("tell", "run", "halt"), "no existe 'halt' (las opciones son "),
    (("train", "lora", "--data", "fish", "--rank"), " --rank: necesita un valor"),
    (("train", "lora", "--data"), " --data: necesita un valor"),
    (("train", "lora", "--sample-prompts"), " --sample-prompts: necesita al menos un valor"),
    (("runs", "--json=yes"), " --json: no acepta el valor 'yes'")])
def test_what_is_wrong_with_arguments_is_told_in_the_persons_language(arguments: Sequence[str], answer: str) -> None:
    done = aprendiz(*arguments, environment={"APRENDIZ_LANGUAGE": "es"})
    assert done.returncode == 2 and answer in done.stderr


def test_help_of_train_and_a_method_tells_that_methods_settings_alone() -> None:
    told = aprendiz("train", "controlnet", "--help", environment={"COLUMNS": "200"}).stdout
    assert "A ControlNet file of the same family to go on from" in told and "diffusers|original" in told
    assert "--vectors" not in told and "--learning-rate" in told
    every = aprendiz("train", "--help", environment={"COLUMNS": "200"}).stdout
    assert "Another thing in each method" in every and "--vectors" in every


class Terminal(io.StringIO):
    """A stream that people look at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def steps(count: int, seconds: float) -> Iterator[dict[str, object]]:
    for step in range(1, count + 1):
        yield {"event": "step", "step": step, "steps": count, "loss": 0.5, "pictures_per_second": 2.0, "peak_memory_gb": 1.0,
               "time": step * seconds}


def test_a_terminal_shows_bar_loss_speed_and_time_left_within_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    stream = Terminal()
    screen = Screen(stream)
    for event in steps(40, 1.0):
        screen.show(event)
    drawn = stream.getvalue().split("\r")[1:]
    assert max(len(line.rstrip("\n")) for line in drawn) < 70
    assert drawn[9].startswith("Training 10/40 █") and drawn[9].endswith("loss 0.5000 · 2.0 pictures/s · 1.0 GB · 0:30 left")
    assert drawn[-1].endswith("0:00 left\n")


def test_elsewhere_a_line_is_written_every_so_often() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    for event in steps(40, 1.0):
        screen.show(event)
    told = stream.getvalue().splitlines()
    assert [line.split(" loss")[0] for line in told] == [f"Training {step}/40" for step in (10, 20, 30, 40)]
    assert "\r" not in stream.getvalue()


def test_training_goes_on_where_nobody_reads_any_more() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    screen = Screen(Closed())
    for event in steps(2, 20.0):
        screen.show(event)
    assert screen.stream.name == os.devnull
    screen.stream.close()


def test_times_are_told_as_clocks_show_them() -> None:
    assert [clock(seconds) for seconds in (-1, 0, 42.4, 725, 10800)] == ["0:00", "0:00", "0:42", "12:05", "3:00:00"]
