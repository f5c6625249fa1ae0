# SPDX-License-Identifier: Apache-2.0
"""Reads files in a process of its own, so that a crash or a hang of a decoder is seen and ends nothing else.

The parent of the two processes here only forks: a new child costs a fork, not the imports.
"""

import faulthandler
import io
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path


# Nothing of a few hundred kilobytes needs more; a file that makes a decoder ask for more gets a MemoryError
ADDRESS_SPACE = 24 * 2**30


def send(descriptor: int, message: object) -> None:
    data = pickle.dumps(message)
    data = struct.pack("<q", len(data)) + data
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int) -> object:
    """The next message; raises EOFError at the end."""
    (length,) = struct.unpack("<q", _read(descriptor, 8))
    return pickle.loads(_read(descriptor, length))


def _read(descriptor: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(descriptor, length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


class Worker:
    """The side of the tests.

    Args:
        checkpoint: Folder of the processor.
        limit: Seconds after which a file hangs.
    """

    def __init__(self, checkpoint: str, limit: float):
        self.limit = limit
        self.errors = tempfile.TemporaryFile("a+b")  # at its end, wherever that was put meanwhile
        # A decoder that does not return is cut off well before that, as for any user after ten minutes
        environment = {**os.environ, "VIDEO_LLAMA_DECODE_TIMEOUT": str(limit / 3)}
        command = [sys.executable, "-m", "tests.fuzz.worker", checkpoint]
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=root, env=environment
        )
        self.child = None

    def read(self, **job) -> tuple[str, str]:
        """Reads a file twice.

        Returns:
            What came of it ("result", the name of an error of ours, "unexpected", "crash" or "hang"), and more about it.
        """
        answers, jobs = self.process.stdout.fileno(), self.process.stdin.fileno()
        if self.child is None:
            _, self.child = receive(answers)
        self.errors.truncate(0)
        send(jobs, job)
        is_in_time, _, _ = select.select([answers], [], [], self.limit)
        if not is_in_time:
            # The child prints where it is
            os.kill(self.child, signal.SIGUSR1)
            select.select([], [], [], 0.5)
            os.kill(self.child, signal.SIGKILL)
        kind, detail = receive(answers)
        if kind == "crash":
            self.child = None
            self.errors.seek(0)
            detail = f"{detail}\n{self.errors.read().decode(errors='replace')[-4000:]}"
            kind = kind if is_in_time else "hang"
        return kind, detail

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        self.errors.close()


def main(checkpoint: str) -> None:
    jobs, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    from transformers import AutoProcessor, logging

    import transformers_videollama  # noqa: F401
    from transformers_videollama.media import import_decord, import_torchaudio

    try:
        import_decord()
    except ImportError:
        pass  # PyAV alone, where decord has no wheel
    import_torchaudio()
    logging.set_verbosity_error()
    processor = AutoProcessor.from_pretrained(checkpoint)
    while True:
        if (child := os.fork()) == 0:
            serve(processor, jobs, answers)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            os._exit(0)  # there is nothing to be tidied up, which would take seconds
        end = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        send(answers, ("crash", end))


def serve(processor, jobs: int, answers: int) -> None:
    """The child: reads files until there are no more."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    send(answers, ("ready", os.getpid()))
    while True:
        try:
            job = receive(jobs)
        except EOFError:
            os._exit(0)
        send(answers, attempt(processor, **job))


def attempt(processor, data: bytes, use: str, form: str, suffix: str, is_whole: bool = False) -> tuple[str, str]:
    """Reads a file twice, as an input of one kind and given in one form."""
    from .checks import check_same, is_ours

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        source = {"path": lambda: str(path), "bytes": lambda: data, "file": lambda: io.BytesIO(data)}[form]
        try:
            first, second = (USES[use](processor, source()) for _ in range(2))
            # Where a frame is damaged, decoders show what their memory happens to hold
            check_same(first, second, but=() if is_whole else ("pixel_values_videos",))
        except Exception as error:
            if is_ours(error):
                return type(error).__name__, str(error)
            return "unexpected", "".join(traceback.format_exception(error))
    return "result", ""


def read_video(processor, source) -> dict:
    from .checks import check_videos

    video_processor = processor.video_processor
    inputs = video_processor(source, return_tensors="pt", return_metadata=True)
    check_videos(inputs, (video_processor.size["height"], video_processor.size["width"]), video_processor.num_frames)
    return {**inputs, "times": inputs.pop("video_metadata")[0].timestamps}


def read_sound(processor, source) -> dict:
    from .checks import check_sounds

    inputs = processor.feature_extractor(source, return_tensors="pt")
    check_sounds(inputs, processor.feature_extractor.num_mel_bins, processor.feature_extractor.num_mel_frames)
    return inputs


def read_picture(processor, source) -> dict:
    from .checks import check_tensor

    inputs = processor.image_processor(source, return_tensors="pt")
    size = processor.image_processor.size
    check_tensor(inputs["pixel_values"], (1, 3, size["height"], size["width"]), "pixel_values")
    return inputs


def read_conversation(processor, source) -> dict:
    """A video with its sound, in a conversation."""
    from .checks import check, check_sounds, check_videos

    content = [{"type": "video", "video": source}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        load_audio_from_video=True,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    size = processor.video_processor.size
    check_videos(inputs, (size["height"], size["width"]), processor.video_processor.num_frames)
    input_ids = inputs["input_ids"][0].tolist()
    check(input_ids.count(processor.video_token_id) == processor.num_video_query_tokens, "placeholders of the video")
    has_sound = "input_features" in inputs
    if has_sound:
        check_sounds(inputs, processor.feature_extractor.num_mel_bins, processor.feature_extractor.num_mel_frames)
    num_heard = processor.num_audio_query_tokens if has_sound else 0
    check(input_ids.count(processor.audio_token_id) == num_heard, "placeholders of the sound")
    return inputs


def crash(processor, source) -> None:
    """To see that a crash is seen."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(processor, source) -> None:
    time.sleep(1000)


def fail(processor, source) -> None:
    raise KeyError("an error of another kind")


USES = {"video": read_video, "sound": read_sound, "picture": read_picture, "conversation": read_conversation}
USES |= {"crash": crash, "hang": hang, "fail": fail}


if __name__ == "__main__":
    main(sys.argv[1])
