"""An asyncio program whose heavy requests are worked on by other processes.

    python examples/asyncio_gather.py

Twenty requests come in at once. Each needs a calculation of some milliseconds, in which an event loop could do nothing
else; one of them would take for ever. The executor's workers calculate, the event loop goes on, and the one that takes
too long is given up: `kill_on_cancel` has asyncio's cancellation end it in its worker, too.
"""

from __future__ import annotations

import asyncio
import math
import time

from rush_executor import RushExecutor

N_REQUESTS = 20
HOPELESS = 13
TIME_LIMIT_S = 3.0
TURN_S = 0.005


def answer(number: int) -> int:
    """The calculation: how many primes there are below a number."""
    below = 10**12 if number == HOPELESS else 1000 + number
    return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(2, below))


async def serve(executor: RushExecutor, number: int) -> str:
    """One request."""
    call = asyncio.get_running_loop().run_in_executor(executor.options(kill_on_cancel=True), answer, number)
    try:
        return f"{number}: {await asyncio.wait_for(call, TIME_LIMIT_S)}"
    except TimeoutError:
        return f"{number}: sorry"


async def count_turns() -> int:
    """How often the event loop got around to this."""
    n_turns = 0
    try:
        while True:
            await asyncio.sleep(TURN_S)
            n_turns += 1
    except asyncio.CancelledError:
        return n_turns


async def main(executor: RushExecutor) -> None:
    # Workers are there: the time limit is about requests.
    await asyncio.gather(*(asyncio.wrap_future(executor.submit(answer, 1)) for _ in range(2)))
    began_at = time.perf_counter()
    turns = asyncio.create_task(count_turns())
    answers = await asyncio.gather(*(serve(executor, number) for number in range(N_REQUESTS)))
    seconds = time.perf_counter() - began_at
    turns.cancel()
    n_turns = await turns
    print("Answers ", ", ".join(answers[:3]), "...")
    print("Given up", *(reply for reply in answers if reply.endswith("sorry")))
    print(f"Loop     {n_turns} turns in {seconds:.1f} s, while the workers calculated")
    # The worker that was at the hopeless one has been killed and replaced.
    print("Again   ", await asyncio.wrap_future(executor.submit(answer, 0)))


# Around the event loop: to start and to stop workers takes some tenths of a second, in which it would stand still.
with RushExecutor(2) as executor:
    asyncio.run(main(executor))
