"""work (Python) [rounds=20] [wait] [linger]: documents are written as JSON and read back, which must give the same.

Python has small objects in pools of its own and takes memory from malloc for large ones only; with PYTHONMALLOC=malloc
in the environment each object is a block of its own.
"""

import json
import os
import sys

ITEMS = 200


def document(number):
    items = [
        {"id": number * ITEMS + index, "name": f"item {index} of {number}", "tags": [f"tag {index % 7}", f"tag {index % 11}"],
         "price": index + 0.25, "stock": {"here": index, "elsewhere": None}, "text": f"What it is, in words. {index}. " * 8}
        for index in range(ITEMS)
    ]
    return {"number": number, "items": items}


words = [word for word in sys.argv[1:] if word in ("wait", "linger")]
numbers = [int(word) for word in sys.argv[1:] if word not in ("wait", "linger")]
rounds = numbers[0] if numbers else 20

if "wait" in words:
    print("ready", os.getpid(), flush=True)
    sys.stdin.readline()

checksum = 0
for number in range(rounds):
    made = document(number)
    text = json.dumps(made)
    if json.loads(text) != made:
        sys.exit("what was read back differs from what was written")
    checksum += len(text)

print("checksum", checksum)
# Of malloc, for each document its text. Without pools, for each item, made and read back: itself, its name, its tags, its price,
# its stock and its text.
has_pools = os.environ.get("PYTHONMALLOC") != "malloc"
print("allocations_at_least", rounds if has_pools else rounds * ITEMS * 2 * 6)
print("done 1", flush=True)
if "linger" in words:
    sys.stdin.readline()
