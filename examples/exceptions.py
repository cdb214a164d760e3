"""A task that fails in a worker: its exception comes back whole, with its causes and the lines of your code."""

from __future__ import annotations

import sys
import traceback

from rush_executor import RushExecutor

PRICES = {"apple": "0.35", "pear": "0.40", "quince": "ask"}


class PriceError(Exception):
    """An exception of one's own, which holds more than a message."""

    def __init__(self, fruit: str, price: str) -> None:
        super().__init__(f"{fruit} has no price, but {price!r}")
        self.fruit = fruit


def cost(fruit: str, n: int) -> float:
    price = PRICES[fruit]
    try:
        return n * float(price)
    except ValueError as error:
        raise PriceError(fruit, price) from error


with RushExecutor(2) as executor:
    for fruit in ("apple", "fig", "pear", "quince"):
        future = executor.submit(cost, fruit, 10)
        try:
            print(f"10 x {fruit}: {future.result():.2f}")
        except KeyError as error:
            print(f"10 x {fruit}: we have no {error}")
        except PriceError as error:
            # The class is the one above, and its attributes came along.
            print(f"10 x {error.fruit}: {error}, because {error.__cause__}")
            print(f"The line that raised it, in the worker: {traceback.extract_tb(error.__traceback__)[-1].line}")
            print("And this is how it prints when nobody catches it:\n")
            traceback.print_exc(file=sys.stdout)
