"""Which emoji stand in a text: whole sequences, as https://unicode.org/reports/tr51/ has them."""

from __future__ import annotations

import re
from collections.abc import Iterator

STYLE = "\ufe0f"
# Characters with the property Emoji; those of Latin-1 and punctuation only where STYLE follows.
PICTURES = (
    "⌚⌛⌨⏏⏩-⏳⏸-⏺▪▫▶◀◻-◾☀-☄☎☑☔☕☘☝☠☢☣☦☪☮☯☸-☺♀♂♈-♓♟♠♣♥♦♨♻♾♿⚒-⚗⚙⚛⚜⚠⚡⚧⚪⚫⚰⚱⚽⚾⛄⛅⛈⛎⛏⛑⛓⛔⛩⛪⛰-⛵⛷-⛺⛽"
    "✂✅✈-✍✏✒✔✖✝✡✨✳✴❄❇❌❎❓-❕❗❣❤\u2795-\u2797➡➰➿⤴⤵⬅-⬇⬛⬜⭐⭕"
    "\U0001f004\U0001f0cf\U0001f170-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff"
)
STYLED = "©®‼⁉™\u2139↔-↪Ⓜ〰〽㊗㊙"
SKIN = "\U0001f3fb-\U0001f3ff"
FLAG = "[\U0001f1e6-\U0001f1ff]{2}"
KEYCAP = f"[0-9#*]{STYLE}?\u20e3"
# England, Scotland and Wales: a black flag with its name in invisible letters.
REGION = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
ONE = f"(?:[{PICTURES}{SKIN}]|[{STYLED}](?={STYLE})){STYLE}?[{SKIN}]?"
EMOJI = re.compile(f"{FLAG}|{KEYCAP}|{REGION}|{ONE}(?:\u200d{ONE})*")


def emoji_of(text: str) -> Iterator[str]:
    """Each emoji in turn; the invisible mark of its style is left out: it comes and goes."""
    return (found[0].replace(STYLE, "") for found in EMOJI.finditer(text))
