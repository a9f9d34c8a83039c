"""Run by the Python of repeng's own environment, which has nothing of educe: control vectors.

python repeng_reader.py FOLDER   reads asked.json there: {model, ids, files}
                                 writes logits.json: {name: logits behind the tokens}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    import torch
    from repeng import ControlModel, ControlVector
    from transformers import AutoModelForCausalLM

    asked = json.loads((folder / "asked.json").read_text())
    ids, found = torch.tensor([asked["ids"]]), {}
    for name, file in asked["files"].items():
        vector = ControlVector.import_gguf(file)
        hf = AutoModelForCausalLM.from_pretrained(asked["model"]).eval()
        assert vector.model_type == hf.config.model_type
        model = ControlModel(hf, list(vector.directions))
        model.set_control(vector, 1.0)
        with torch.no_grad():
            found[name] = model(input_ids=ids, use_cache=False).logits[0, -1].tolist()
    (folder / "logits.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
