"""Values that a completion has extracted (dates, phone numbers, addresses, ...), field by field against gold."""

from headrace.verifiers.entities.kinds import Context, EntityType, NotUnderstood
from headrace.verifiers.entities.verifier import EntitiesOptions, EntitiesVerifier

__all__ = ["Context", "EntitiesOptions", "EntitiesVerifier", "EntityType", "NotUnderstood"]
