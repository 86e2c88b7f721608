"""SQL, judged by the rows that it returns or by the database that it leaves behind."""

from headrace.verifiers.database.verifier import DatabaseOptions, DatabaseVerifier

__all__ = ["DatabaseOptions", "DatabaseVerifier"]
