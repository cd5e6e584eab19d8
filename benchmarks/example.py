"""diffusers' own example script, in turns: each of its optimizer steps is counted as a step. Started by `turns.Loop`.

The script is run as it is, from where the person keeps it; nothing of it is kept here. It needs torchvision and datasets.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from typing import Any

import torch

from .case import Case
from .turns import Turns


def main() -> None:
    case, script = Case.from_arguments(), sys.argv[2]
    turns = Turns(case.warm_up)
    step = torch.optim.AdamW.step

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        result = step(self, *arguments, **named)
        turns.done()
        return result

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        sys.argv = [script, f"--pretrained_model_name_or_path={case.folder}", f"--train_data_dir={case.pictures}",
                    "--caption_column=text", f"--resolution={case.resolution}", f"--train_batch_size={case.batch_size}",
                    f"--rank={case.rank}", f"--learning_rate={case.learning_rate}", "--adam_weight_decay=0.01",
                    "--lr_scheduler=constant",
                    "--lr_warmup_steps=0", "--max_train_steps=1000000", "--num_validation_images=0", f"--output_dir={out}",
                    f"--cache_dir={out}", "--dataloader_num_workers=0", "--center_crop"]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
