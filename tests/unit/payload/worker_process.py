"""A process that does what a worker does with payloads; `remote` starts it and talks to it through its pipes."""

from __future__ import annotations

import os
import pickle
import sys

from rush_executor._payload import Decoder, run_chunk


def main() -> None:
    # What tasks print must not get into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    bodies: dict[str, bytes] = {}
    decoder = Decoder("test", None, lambda _, digest: bodies[digest])
    while True:
        try:
            kind, client_id, payload, new_bodies = pickle.load(requests)
        except EOFError:
            return
        bodies.update(new_bodies)
        try:
            if kind == "initializer":
                fn, initargs = decoder.decode_initializer(client_id, payload)
                fn(*initargs)
                answer = "finished", decoder.encode_result("t", None)
            else:
                call = decoder.decode_call(client_id, "t", payload)
                if call.is_chunk:
                    answer = "finished", decoder.encode_chunk("t", *run_chunk(call.fn, call.args[0]))
                else:
                    answer = "finished", decoder.encode_result("t", call.fn(*call.args, **call.kwargs))
        except BaseException as exc:
            answer = "failed", decoder.encode_failure("t", exc, trim=1)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
