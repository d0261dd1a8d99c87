"""SEC-B7: in the processes that hold credentials nothing of an upload is unpickled, executed or unmarshalled.

An audit hook sees every such event of the interpreter, whoever causes it. It cannot be removed, so it lives in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys, json, os
events = []
armed = False

def installed(code):
    # Code of installed modules, of frozen ones and of this checkout, or made by them for themselves (dataclasses, named tuples).
    return os.path.isabs(code.co_filename) or code.co_filename.startswith("<")

def hook(name, arguments):
    if not armed:
        return
    if name == "pickle.find_class":
        events.append([name, repr(arguments)])
    elif name == "marshal.loads":
        frame, inside = sys._getframe(1), False
        while frame is not None and not inside:
            inside = frame.f_code.co_filename == "<frozen importlib._bootstrap_external>"
            frame = frame.f_back
        if not inside:
            events.append([name, ""])
    elif name == "exec" and not installed(arguments[0]):
        events.append([name, arguments[0].co_filename])
    elif name in {"ctypes.dlopen"} and arguments[0] and "/scratch/" in str(arguments[0]):
        events.append([name, str(arguments[0])])
    elif name == "import" and arguments[0] in {"onnx", "tensorflow", "onnxruntime", "ai_edge_litert", "pickle_of_the_upload"}:
        events.append([name, arguments[0]])

sys.addaudithook(hook)
import asyncio
from pathlib import Path
sys.path.insert(0, %(root)r)
from tests import models as m
from tests.packager.running import packaging

PICKLE = b"\\x80\\x04cbuiltins\\neval\\n(S'1/0'\\ntR."

async def main():
    global armed
    async with packaging(Path(%(folder)r)) as one:
        armed = True
        ended = []
        for model in (m.onnx_mlp(8, 16, 4), m.tflite_add(4), PICKLE, b"rubbish", m.onnx_add(opset=500)):
            files = [await one.put("model.bin", model), await one.put("labels.pkl", PICKLE)]
            job = await one.commit({"variants": [{"files": files[:1]}], "files": files[1:]})
            ended.append((await one.ended(job))["state"])
        armed = False
    # The control: the hook does see what it looks for.
    armed = True
    import pickle, marshal
    pickle.loads(b"\\x80\\x04cbuiltins\\nlen\\n.")
    marshal.loads(marshal.dumps(1))
    exec(compile("1", "upload.py", "exec"))
    armed = False
    print(json.dumps({"ended": ended, "events": events}))

asyncio.run(main())
"""


async def test_trusted_processes_run_nothing_of_an_upload(tmp_path: Path) -> None:
    script = SCRIPT % {"root": str(ROOT), "folder": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    out, errors = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, errors.decode()[-2000:]
    told = json.loads(out.splitlines()[-1])
    assert told["ended"] == ["succeeded", "succeeded", "failed", "failed", "failed"]
    seen = [name for name, _ in told["events"]]
    assert seen == ["pickle.find_class", "marshal.loads", "exec"], told["events"]
