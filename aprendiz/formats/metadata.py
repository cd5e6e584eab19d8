"""What a file of ours tells of its making: kohya's fields `ss_*`, Stability's `modelspec.*`, and our own `aprendiz_job`.

Every value is a text, as `.safetensors` wants it. Three levels: `full`, `public` (what it is and what calls it), `none` (the
little without which a host cannot tell its family). Never told, at any level: a path, the name of the user or of the machine.
Hashes are added by the writer, from the final bytes. Readers of each field: `docs/formats.md`.
"""

from __future__ import annotations

import datetime
import getpass
import hashlib
import json
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data import buckets
from ..knobs import knobs
from .container import read_header
from .writing import write_whole

if TYPE_CHECKING:
    from ..data.folder import Dataset, Picture
    from ..families import Base, Family
    from ..settings import Job

JOB = "aprendiz_job"
MOST_TAGS = 500  # of a folder; ComfyUI shows no metadata where the header is over 1 MiB
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
MINIMUM = ("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
# What stays at each level, hashes aside; `full` keeps everything.
PUBLIC = (*MINIMUM, "ss_output_name", "ss_tag_frequency", "ss_num_train_images", "modelspec.sai_model_spec",
          "modelspec.architecture",
          "modelspec.implementation", "modelspec.implementation_version", "modelspec.title", "modelspec.resolution",
          "modelspec.date",
          "modelspec.trigger_phrase", "modelspec.usage_hint", "modelspec.author", "modelspec.license",
          "modelspec.prediction_type")
NONE = ("ss_base_model_version", "ss_v2", "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation")


@dataclass(frozen=True)
class Label:
    """How hosts know a family.

    version, architecture: of epsilon, and of v-prediction where that has names of its own; sidecar: A1111's.
    """

    version: str
    architecture: str
    implementation: str
    sidecar: str
    version_v: str | None = None
    architecture_v: str | None = None


SGM = "https://github.com/Stability-AI/generative-models"
LABELS = {
    "sd1": Label("sd_v1", "stable-diffusion-v1", "diffusers", "SD1", "sd_v1_v"),
    "sd2": Label("sd_v2", "stable-diffusion-v2-512", "diffusers", "SD2", "sd_v2_v", "stable-diffusion-v2-768-v"),
    "sdxl": Label("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", SGM, "SDXL"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What is known of a run besides its job. base_sha256: of the base's weights, in hex.

    resolution: pixels. started, finished: Unix time. graph: texts of the graph that asked for the run (`formats.graph`).
    """

    dataset: Dataset
    base: Base
    base_sha256: str | None
    resolution: int
    steps: int
    batches_per_epoch: int
    started: float
    finished: float
    graph: Mapping[str, str] = field(default_factory=dict)


def lora_metadata(job: Job, facts: TrainingFacts) -> dict[str, str]:
    """A LoRA's metadata at the level that the job asks for (`output.metadata`), without the hashes."""
    told = {**_network(job, facts), **_run(job, facts), **_pictures(job, facts), **_modelspec(job, facts)}
    captions = job.output.captions_in_metadata
    told |= {"ss_tag_frequency": tag_frequency(facts.dataset, captions),
             JOB: json.dumps(job_values(job, captions), ensure_ascii=False, separators=(",", ":")), **facts.graph}
    return reduce(texts(told), job.output.metadata)


def embedding_metadata(job: Job, facts: TrainingFacts, name: str) -> dict[str, str]:
    """An embedding's metadata at the level that the job asks for, without the hashes. name: the file's, which calls it."""
    version = {"ss_base_model_version": base_version(facts.base), "ss_v2": facts.base.family.name == "sd2"}
    told = {**version, **_run(job, facts), **_pictures(job, facts), **_modelspec(job, facts, "textual-inversion", name)}
    told[JOB] = json.dumps(job_values(job, job.output.captions_in_metadata), ensure_ascii=False, separators=(",", ":"))
    told |= facts.graph
    return reduce(texts(told), job.output.metadata)


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as kohya's scripts write them: JSON for what is nested, 'None', 'True'."""
    return {name: json.dumps(value, ensure_ascii=False, separators=(",", ":")) if isinstance(value, (dict, list)) else str(value)
            for name, value in values.items()}


def reduce(metadata: Mapping[str, str], level: str) -> dict[str, str]:
    """Any LoRA file's metadata cut down to a level: 'full' (without the captions' words once shared), 'public' or 'none'."""
    if level == "full":
        return dict(metadata)
    kept = {name: value for name, value in metadata.items() if name in (PUBLIC if level == "public" else NONE)}
    if level == "public" and "ss_tag_frequency" in kept:
        kept["ss_tag_frequency"] = _triggers_only(metadata)
    if level == "none" and metadata.get("ss_v2") != "True":
        kept.pop("ss_v2", None)
    return kept


def _triggers_only(metadata: Mapping[str, str]) -> str:
    trigger, count = metadata.get("modelspec.trigger_phrase", ""), metadata.get("ss_num_train_images", "1")
    words = [word.strip() for word in trigger.split(",") if word.strip()]
    return json.dumps({"training": {word: int(count) if count.isdigit() else 1 for word in words}} if words else {},
                      ensure_ascii=False)


def label(family: str) -> Label:
    """How hosts know the family of this name."""
    return LABELS.get(family, Label(family, family, "diffusers", "Unknown"))


def base_version(base: Base) -> str:
    """kohya's word for a base: 'sd_v1', 'sd_v2_v', 'sdxl_base_v1-0'."""
    known = label(base.family.name)
    return known.version_v if base.prediction == "v" and known.version_v else known.version


def _network(job: Job, facts: TrainingFacts) -> dict[str, Any]:
    method = asdict(job.method)
    rank = method.get("rank")
    alpha = method.get("alpha") or rank
    if rank and alpha and method.get("rank_stabilised"):
        alpha = alpha * rank ** 0.5  # hosts know no other scale than alpha / rank
    everything = method.get("targets") == "all"
    return {"ss_network_module": "networks.lora", "ss_network_dim": rank,
            "ss_network_alpha": None if alpha is None else float(alpha),
            "ss_network_args": {"conv_dim": str(rank), "conv_alpha": str(alpha)} if everything else {},
            "ss_network_dropout": method.get("rank_dropout"),
            "ss_base_model_version": base_version(facts.base), "ss_v2": facts.base.family.name == "sd2"}


def _run(job: Job, facts: TrainingFacts) -> dict[str, Any]:
    training, optimizer, objective, base = job.training, job.optimizer, job.objective, facts.base
    text_rate = asdict(job.method).get("text_encoder_learning_rate")
    session = hashlib.sha256(f"{job.hash(facts.dataset.digest)}/{facts.started}".encode()).digest()
    epoch = -(-facts.steps // max(1, facts.batches_per_epoch))
    return {
        "ss_session_id": int.from_bytes(session[:4], "big"), "ss_output_name": job.output.name or job.method_name,
        "ss_training_started_at": facts.started, "ss_training_finished_at": facts.finished, "ss_steps": facts.steps,
        "ss_epoch": epoch,
        "ss_num_epochs": epoch, "ss_max_train_steps": training.steps or facts.steps,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_seed": training.seed, "ss_learning_rate": optimizer.learning_rate, "ss_unet_lr": optimizer.learning_rate,
        "ss_text_encoder_lr": optimizer.learning_rate if text_rate is None else text_rate, "ss_optimizer": optimizer.optimizer,
        "ss_lr_scheduler": optimizer.schedule, "ss_lr_warmup_steps": optimizer.warmup_steps,
        "ss_max_grad_norm": optimizer.max_grad_norm or 0.0,
        "ss_batch_size_per_device": training.batch_size // training.gradient_accumulation,
        "ss_total_batch_size": training.batch_size,
        "ss_gradient_accumulation_steps": training.gradient_accumulation,
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_mixed_precision": str(base.dtype).removeprefix("torch."), "ss_full_fp16": False, "ss_cache_latents": True,
        "ss_loss_type": {"mse": "l2"}.get(objective.loss, objective.loss), "ss_huber_c": objective.huber_delta,
        "ss_min_snr_gamma": objective.min_snr_gamma, "ss_noise_offset": objective.noise_offset or None,
        "ss_zero_terminal_snr": base.zero_terminal_snr if objective.zero_terminal_snr is None else objective.zero_terminal_snr,
        "ss_clip_skip": base.clip_skip, "ss_prior_loss_weight": job.prior.prior_weight,
        "ss_sd_model_name": base_name(job), "ss_new_sd_model_hash": facts.base_sha256,
        "ss_vae_name": bare(job.base.vae) if job.base.vae else None,
        "ss_training_comment": f"Aprendiz {__version__}"}


def _pictures(job: Job, facts: TrainingFacts) -> dict[str, Any]:
    data, taught = job.data, [p for p in facts.dataset.pictures if not p.validation]
    side = facts.resolution
    step = data.bucket_step or facts.base.family.bucket_step
    planned = Counter(b for b in buckets.planned(data, [p.size for p in taught], side, step) if b)
    sizes = {"buckets": {str(i): {"resolution": list(size), "count": n} for i, (size, n) in enumerate(sorted(planned.items()))}}
    folders: dict[str, dict[str, int]] = {}
    subsets = []
    for name, pictures in concepts(facts.dataset).items():
        folders[name] = {"n_repeats": pictures[0].repeats, "img_count": len(pictures)}
        subsets.append({"image_dir": name, "img_count": len(pictures), "num_repeats": pictures[0].repeats,
                        "class_tokens": pictures[0].trigger or "",
                        "keep_tokens": data.keep_tags, "caption_dropout_rate": data.caption_dropout,
                        "shuffle_caption": data.shuffle_tags,
                        "flip_aug": data.flip, "random_crop": data.crop == "random"})
    return {
        "ss_num_train_images": sum(p.repeats for p in taught),
        "ss_num_validation_images": len(facts.dataset.pictures) - len(taught),
        "ss_num_reg_images": job.prior.pictures, "ss_resolution": f"({side}, {side})", "ss_enable_bucket": data.buckets,
        "ss_bucket_no_upscale": not data.allow_upscale, "ss_bucket_info": sizes, "ss_dataset_dirs": folders,
        "ss_datasets": [{"is_dreambooth": True, "num_train_images": len(taught), "resolution": [side, side], "subsets": subsets}],
        "ss_shuffle_caption": data.shuffle_tags, "ss_keep_tokens": data.keep_tags,
        "ss_caption_dropout_rate": data.caption_dropout,
        "ss_caption_tag_dropout_rate": data.tag_dropout, "ss_flip_aug": data.flip, "ss_random_crop": data.crop == "random",
        "ss_max_token_length": data.max_tokens}


def _modelspec(job: Job, facts: TrainingFacts, kind: str = "lora", called: str | None = None) -> dict[str, Any]:
    """kind: as modelspec names it. called: what calls it, where that is not the trigger of the captions."""
    base, known = facts.base, label(facts.base.family.name)
    architecture = known.architecture_v if base.prediction == "v" and known.architecture_v else known.architecture
    trigger = called or ", ".join(triggers(facts.dataset))
    told = {"sai_model_spec": "1.0.1", "architecture": f"{architecture}/{kind}", "implementation": known.implementation,
            "implementation_version": f"aprendiz/{__version__}", "title": job.output.name or job.method_name,
            "resolution": f"{facts.resolution}x{facts.resolution}",
            "date": datetime.datetime.fromtimestamp(int(facts.finished), datetime.timezone.utc).isoformat(),
            "trigger_phrase": trigger, "usage_hint": f"Trigger word: {trigger}" if trigger else "",
            "author": job.output.author or "", "license": job.output.license or "",
            "prediction_type": base.prediction if base.prediction in ("epsilon", "v") else "",
            "encoder_layer": str(base.clip_skip or ""),
            "timestep_range": f"{job.objective.timestep_min},{job.objective.timestep_max + 1}"}
    return {f"modelspec.{name}": value for name, value in told.items() if value}


def concepts(dataset: Dataset) -> dict[str, list[Picture]]:
    """The pictures trained on, by their folder's bare name."""
    found: dict[str, list[Picture]] = {}
    for picture in dataset.pictures:
        if not picture.validation:
            found.setdefault(bare(picture.concept) or "pictures", []).append(picture)
    return found


def triggers(dataset: Dataset) -> list[str]:
    """The words that call what is taught, each once, in order."""
    return list(dict.fromkeys(p.trigger for p in dataset.pictures if p.trigger))


def tag_frequency(dataset: Dataset, captions: bool) -> dict[str, dict[str, int]]:
    """How often each comma-separated part of a caption occurs, by folder; the trigger first, for hosts show them in this order.

    Without `captions` the triggers alone.
    """
    found: dict[str, dict[str, int]] = {}
    for name, pictures in concepts(dataset).items():
        counts: Counter[str] = Counter()
        if captions:
            for picture in pictures:
                counts.update({part.strip() for part in picture.captions[0].split(",") if part.strip()})
        called = Counter(p.trigger for p in pictures if p.trigger)
        tags = dict(called.most_common())
        tags |= {tag: n for tag, n in counts.most_common(MOST_TAGS) if tag not in tags}
        if tags:
            found[name] = tags
    return found


def base_name(job: Job) -> str:
    """The base's name without its place: 'micro', 'model.safetensors'."""
    return bare(job.base.path)


def job_values(job: Job, captions: bool = True) -> dict[str, Any]:
    """The job as plain values: paths are cut to their last part, and without `captions` prompts are gone too."""
    values = job.values()
    for section in values.keys() - {"schema"}:
        settings = job.method if section == "method" else getattr(job, section)
        for name, one in knobs(type(settings)).items():
            if one.path and isinstance(values[section][name], str):
                values[section][name] = bare(values[section][name])
    if not captions:
        values["samples"]["sample_prompts"], values["prior"]["prompts"], values["data"]["caption"] = [], [], None
    return values


def bare(path: str) -> str:
    """The last part of a path of any system; 'private' where that is the user's or the machine's own name."""
    name = PureWindowsPath(path).name if "\\" in path or path[1:2] == ":" else PurePosixPath(path).name
    return "private" if name.lower() in private_words() else name


@cache
def private_words() -> frozenset[str]:
    """Names that must not travel: the user's, the machine's, in lower case."""
    found = {Path.home().name, socket.gethostname(), socket.gethostname().split(".")[0]}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError, ImportError):  # no such user in this container
        pass
    return frozenset(word.lower() for word in found if word)


def write_sidecar(file: Path, job: Job, family: Family) -> Path | None:
    """`<name>.json` beside a file of weights, which AUTOMATIC1111 and Forge read; None where that name is the run's own job."""
    target = file.with_suffix(".json")
    if target.name.lower() == "job.json":
        return None
    told = read_header(file).metadata
    trigger = told.get("modelspec.trigger_phrase") or job.data.trigger or ""
    what = "an embedding" if told.get("modelspec.architecture", "").endswith("/textual-inversion") else "a LoRA"
    return write_whole(target, sidecar(file.stem, trigger, family.name, family.title, what))


def sidecar(name: str, trigger: str, family: str, title: str, what: str = "a LoRA") -> bytes:
    """The side-car's content: what calls it, and for which bases it is."""
    content = {"description": f"{name}: {what} for {title}, made with Aprendiz {__version__}.",
               "sd version": label(family).sidecar, "activation text": trigger, "preferred weight": 1.0, "negative text": "",
               "notes": ""}
    return json.dumps(content, ensure_ascii=False, indent=4).encode("utf-8")
