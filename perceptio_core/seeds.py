"""Seeds as a pure function of what they are for."""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts; distinct parts give unrelated seeds (SHA-256 of their text)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
