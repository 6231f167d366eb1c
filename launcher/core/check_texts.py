"""The texts on which two tokenizers are compared before one is used in place of the other.

Separate from the comparisons, because the worker compares the file that the front uses with the tokenizer that
transformers builds, and the front compares its fast path with that file: both need the same texts. The texts cover
what tokenizers are known to differ in: case, accents, scripts without spaces, control characters, white space, long
words, and added tokens inside a text.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

_PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "ALL CAPS and MiXeD cAsE, don't stop; it's 12 °C, isn't it?",
    # Accents, composed and as combining marks, and letters whose lower case has another length.
    "naïve Café Ünïcode ÅNGSTRÖM Straße ẞ İstanbul ıI ﬁne ǅ",
    "cafe\u0301 A\u030angstro\u0308m n\u0303 e\u0323\u0302 \u0301 \u1e9b\u0323 \u212b \u212a",
    "Tiếng Việt, Čeština, Łódź, Ελληνικά ΣΊΣΥΦΟΣ ς, Русский Ёж",
    # Scripts without spaces, full-width forms, and scripts written from right to left.
    "中文分詞測試，日本語のテキスト。カタカナ ｶﾀｶﾅ ひらがな 한국어 텍스트",
    "a中b文c \u3400 \U00020000 \uf900 々〆〇",
    "ＦＵＬＬ ｗｉｄｔｈ　１２３，！",
    "עברית עִבְרִית العربية اَلْعَرَبِيَّةُ \u202eabc\u202c",
    "हिन्दी ภาษาไทย தமிழ் ខ្មែរ ქართული",
    # Emoji with modifiers and joiners, symbols, and characters outside the basic plane.
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ❤️ ☃ 1️⃣ 𝒜𝔅 𐍈",
    "½ ² ① ™ € £ … – — “quoted” ‘single’ ≤ √ ∞ \u00ad soft\u00adhyphen",
    # Control characters, NUL, and characters of no width.
    "a\x00b \x01\x02\x1b\x7f\x80\x9f end",
    "zero\u200bwidth \u200d \u200e \ufeff bom \ufffd \ue000",
    # White space of every kind, alone and in runs.
    " leading and trailing ",
    "   runs   of    spaces  ",
    "tab\tnew\nline\r\nreturn\r\x0b\x0c\x85 \u00a0 \u2003\u2028\u2029\u3000 end\n\n\n\n",
    "\t\n \r\n\t",
    " ",
    "",
    # Numbers, addresses, code.
    "1234567890 3.14159 1,000,000 1e-5 0x1F +49-170",
    "https://example.org/a_b-c?d=e&f=%20#g user@example.com C:\\dir\\file.txt",
    "def f(x):\n    return {'a': [x**2, x != 3]}  # comment",
    "<b>bold</b> &amp; [x] {y} $z$ a_b __init__ ## ### ##ing @@ ▁under Ġword </w>",
    # Long words: above the limit of WordPiece (100 characters), and far above.
    "x" * 100 + " " + "y" * 101 + " " + "Ab" * 150,
    "long" * 1250,
    "漢" * 300,
    "!" * 300 + "-" * 50,
    # Each printable character alone, doubled, and within a word.
    " ".join(f"{c} {c}{c} a{c}b" for c in _PRINTABLE),
)

# Each added token is tried by itself up to this number; all of them are tried together.
_TOKENS_ALONE = 24
_TOKENS_PER_TEXT = 500


def check_texts(added: Sequence[str]) -> tuple[str, ...]:
    """The texts for tokenizers that have these added tokens."""
    texts = list(_TEXTS)
    half = _TOKENS_ALONE // 2
    alone = added if len(added) <= _TOKENS_ALONE else (*added[:half], *added[-half:])
    for token in alone:
        texts += (
            token,
            f"a{token}b",
            f"A {token} b.",
            f"  x \t{token} \n {token}  {token}{token}y ",
            token.lower(),
            f"a {token.upper()}b",
            f"é{token}中",
        )
    for first in range(0, len(added), _TOKENS_PER_TEXT):
        some = added[first : first + _TOKENS_PER_TEXT]
        texts += ("".join(some), " a ".join(some))
    return tuple(texts)


def check_pairs(added: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of texts; neither is empty, since transformers treats an empty second text as absent."""
    texts = [text for text in check_texts(added[:2]) if text]
    return tuple((text, texts[(7 * place + 3) % len(texts)]) for place, text in enumerate(texts))
