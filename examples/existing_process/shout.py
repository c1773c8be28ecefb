"""A program that was there before: JSON on standard input, JSON on standard output."""

import json
import sys

json.dump({"text": json.load(sys.stdin)["text"].upper()}, sys.stdout)
