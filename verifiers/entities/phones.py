"""Phone numbers, by Google's library in its Python port."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from headrace.verifiers.entities.kinds import Context, EntityType, NotUnderstood

# The library takes what it likes from a text and drops the rest, letters it dials. So the whole text must be one number.
_NUMBER = re.compile(
    r"(?:tel\.?:?\s*)?(\+?[\d\s().\-/]{3,40}?)(?:[\s,;]*(?:x|ext\.?|extension|#|durchwahl)\s*(\d{1,7}))?", re.I
)


class Phone(EntityType):
    """The same number, in national or international form, however grouped; an extension is part of it."""

    def canonical(self, text: str, context: Context) -> str:
        library = _library()
        found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", text).strip())
        if found is None:
            raise NotUnderstood
        written, extension = found[1], found[2]
        try:
            number = library.parse(written, context.region)
        except library.NumberParseException:
            raise NotUnderstood from None
        if not library.is_possible_number(number):
            raise NotUnderstood
        dialed = library.format_number(number, library.PhoneNumberFormat.E164)
        return f"{dialed};ext={extension}" if extension else dialed

    def warm_up(self, context: Context) -> None:
        library = _library()
        library.PhoneMetadata.load_all()
        for text in ("212 555 0123", "+4930123456", "+33 1 23 45 67 89 x 5", "0800"):
            try:
                self.canonical(text, context)
            except NotUnderstood:
                continue


def _library() -> Any:
    # Optional and slow to import: only this type needs it. verifier.py has seen to it that it is there.
    import phonenumbers

    return phonenumbers
