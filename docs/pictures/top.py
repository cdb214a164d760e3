"""Makes the picture of `rush-executor top` in the README, of a run that really takes place.

python docs/pictures/top.py > docs/pictures/top.svg          # half a minute; needs rich
python docs/pictures/top.py --text                           # the same as text, for docs/how-to/watch.md
"""

from __future__ import annotations

import io
import re
import sys
import time
from typing import Final

from rich.console import Console

from rush_executor import RushExecutor
from rush_executor._cli.output import plain_lines, rich_renderable
from rush_executor._cli.top import frame_blocks
from rush_executor._ledger.connection import Channel, open_pool
from rush_executor._ledger.overview import OverviewReader
from rush_executor._ledger.views import NetworkReader
from rush_executor._protocol.keys import Keys
from rush_executor._view.checkup import server_text
from rush_executor._view.lookout import Lookout, Meter
from rush_executor.testing import temporary_server

# As the server is called by a user; that of this run has a socket with a long name.
SERVER: Final = "redis://:***@127.0.0.1:6390/0"
NETWORK: Final = "demo"
WIDTH: Final = 100
N_LOOKS: Final = 60
LOOK_S: Final = 0.5
# Those of rich come from another host, which a picture may not ask; the letters stand right without them.
FONTS: Final = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)


def simulate(n: int) -> int:
    """A short task; some are longer."""
    time.sleep(0.02 + 0.01 * (n * n % 17) + (n % 400 < 40) * 0.2)  # noqa: PLR2004
    return n


def fit_model(n: int) -> int:
    """A task that takes its time."""
    time.sleep(60 + n)
    return n


def load_table(name: str) -> None:
    """A task that fails."""
    raise FileNotFoundError(name)


def main() -> None:
    """Runs tasks, looks at them, and draws the last look."""
    with temporary_server() as url, RushExecutor(6, url=url, network_id=NETWORK) as executor:
        for n in (9, 17):
            executor.submit(fit_model, n)
        for n in range(2):
            executor.submit(load_table, f"day-{n}.csv")
        for n in range(5000):
            executor.submit(simulate, n)
        channel, keys = Channel(open_pool(url), reconnect_timeout_s=5.0), Keys(NETWORK)
        lookout, meter = Lookout(NETWORK, OverviewReader(channel, keys), None), Meter(N_LOOKS)
        for _ in range(N_LOOKS):
            time.sleep(LOOK_S)
            picture = lookout.picture()
            rate = meter.note(picture)
        text = server_text(NetworkReader(channel, keys).info())
        channel.close()
        executor.shutdown(wait=False, cancel_futures=True)
        executor.kill_workers()
    blocks = frame_blocks(picture, meter, server=SERVER, server_text=text, rate=rate, height=None)
    if "--text" in sys.argv:
        sys.stdout.writelines(f"{line}\n" for line in plain_lines(blocks, WIDTH))
        return
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(rich_renderable(blocks))
    sys.stdout.write(FONTS.sub("\n", console.export_svg(title=f"rush-executor top --network {NETWORK}")))


if __name__ == "__main__":
    main()
