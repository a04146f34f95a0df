"""Writes ``orders.jsonl``: 500 orders, the same on every machine. Run it only to change the day."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone
from pathlib import Path

ORDERS = Path(__file__).with_name("orders.jsonl")

#: Last two digits of the amount -> positions in the file. What they do at the gateway: see gateway.py; 66 is shop.py's own.
SPECIAL = {
    2: (30, 120, 260, 410),
    40: (75, 330),
    29: (15, 90, 140, 300, 370, 450),
    53: (22, 110, 170, 310, 380, 430),
    54: (5, 12),
    98: (40, 105, 290, 400),
    66: (60,),
}
NAMES = "Ada Ben Cleo Dov Elif Finn Gia Hugo Ines Jun Kofi Lea Mia Noor Omar Pia Quinn Rosa Sven Tala Uma Vito Wren Yara Zoe".split()
ITEMS = "teapot lamp kettle rug clock vase chair mirror bowl basket candle blanket".split()


def orders() -> list[dict[str, object]]:
    """Return the 500 orders."""
    rng = random.Random(20240229)
    special = {position: cents for cents, positions in SPECIAL.items() for position in positions}
    placed = datetime(2024, 2, 29, 9, 0, tzinfo=timezone.utc)
    found = []
    for position in range(500):
        placed += timedelta(seconds=rng.randint(1, 90))
        cents = special.get(position, rng.choice((0, 50, 95, 99)))
        found.append(
            {
                "order_id": 1001 + position,
                "customer": rng.choice(NAMES),
                "items": rng.sample(ITEMS, rng.randint(1, 3)),
                "amount": rng.randint(5, 240) * 100 + cents,
                "currency": "EUR",
                "placed_at": placed.isoformat(),
            }
        )
    return found


if __name__ == "__main__":
    ORDERS.write_text("".join(json.dumps(order) + "\n" for order in orders()), encoding="utf-8")
