"""SQL, judged by the rows that it returns or by the database that it leaves behind."""
